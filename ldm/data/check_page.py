"""The findings of a check as one page of text."""

from collections.abc import Iterator

from ldm.data.findings import Findings
from ldm.data.stored import Named, shown

NAMED_MODES = 3  # pictures of each mode but plain RGB and grey


def page(found: Findings, model: str, rate: float, device: str) -> str:
    """What a reader needs of ``found``; the autoencoder of ``model`` does ``rate`` images a second on ``device``."""
    lines = [f"{shown(found.path)} as data.name={found.kind} data.size={found.size}", ""]
    of_text = [*of_captions(found, model), *of_cache(found, model, rate, device)] if found.captioned else []
    for label, text in [*of_pictures(found), *of_text]:
        lines.append(f"{label:<12}{text}")
    for title, named in faults(found).items():
        lines += listing(title, named)
    lines += ["", "not fit to be trained on:" if found.reasons else "fit to be trained on"]
    return "\n".join([*lines, *(f"  {reason}" for reason in found.reasons)])


def of_pictures(found: Findings) -> Iterator[tuple[str, str]]:
    notes, pictures, archives = found.notes, found.pictures, found.archives
    share = found.broken.count / max(found.listed, 1)
    listed = f"{found.listed}{' with a caption' if found.captioned else ', captions not looked for'}"
    yield "pictures", f"{listed}: {found.usable} usable, {found.broken.count} broken ({share:.1%})"
    if found.captioned:
        yield "left out", f"{notes.missing.count} without a caption, {notes.empty.count} with an empty one"
        alone = f"{notes.alone.count} captions without a picture"
        yield "also there", f"{alone}, {notes.unread.count} other files, never read"
    yield "formats", histogram(pictures.formats)
    yield "modes", ", ".join(modes(pictures.modes)) or "none"
    yield "sizes", f"{sides(pictures.smallest)} to {sides(pictures.largest)} pixels"
    yield "short side", histogram(pictures.sides)
    yield "", f"{pictures.below_size.count} below {found.size} pixels, which are scaled up"
    yield "shapes", f"{histogram(pictures.ratios)} (width to height, the nearest of five)"
    yield "repeated", f"{found.same_bytes.count} pictures byte for byte, {found.same_pixels.count} pixel for pixel"
    if archives:
        size = f"{archives.fewest} to {archives.most} samples"
        yield "archives", f"{archives.count} of {size}; {notes.cut.count} cut off, at least {notes.lost} samples lost"
        dealt = f"{archives.least_dealt} to {archives.most_dealt} archives"
        yield "", f"as a stream: {dealt} a pass for each of {archives.consumers} ranks x workers"


def of_captions(found: Findings, model: str) -> Iterator[tuple[str, str]]:
    captions = found.captions
    yield "captions", f"{captions.count}, {captions.distinct} distinct; {captions.several} pictures have several"
    yield "", f"{found.notes.mended.count} lose bytes that are not UTF-8"
    yield "tokens", f"half have at most {captions.median}, 95 % {captions.most_of_them}, the longest {captions.longest}"
    yield "", f"{captions.cut.count} are cut to the {captions.limit} of {model}'s text encoder"
    if captions.spelled.count:
        yield "", f"{captions.spelled.count} hold words outside its vocabulary, which it spells in bytes;"
        yield "", f"with CLIP's whole vocabulary {captions.cut_by_clip} would be cut"


def of_cache(found: Findings, model: str, rate: float, device: str) -> Iterator[tuple[str, str]]:
    cache, seconds = found.cache, found.cache.pictures / rate
    yield "cache", f"{'' if cache.exact else 'at most '}{cache.bytes:,} bytes for the training split:"
    yield "", f"{cache.pictures} pictures and {cache.captions} distinct captions"
    duration = f"{seconds:.1f} seconds" if seconds < 60 else f"{seconds / 3600:.2f} hours"
    yield "", f"about {duration} of {model}'s autoencoder on {device} ({rate:.3g} pictures/s):"
    yield "", "an estimate of this machine, without reading and decoding"


def faults(found: Findings) -> dict[str, Named]:
    """What is listed by name."""
    notes = found.notes
    return {
        "refused": notes.refused,
        "broken": found.broken,
        "archives cut off": notes.cut,
        "keys that come twice": notes.repeated,
        "without a caption": notes.missing,
        "with an empty caption": notes.empty,
        "captions without a picture": notes.alone,
        "captions that are not UTF-8": notes.mended,
        "captions cut": found.captions.cut,
        "never read": notes.unread,
        "the same pixels": found.same_pixels,
    }


def listing(title: str, named: Named) -> Iterator[str]:
    if named.count:
        more = f", the first {len(named.first)}" if named.count > len(named.first) else ""
        yield from ("", f"{title} ({named.count}{more}):")
        yield from (f"  {name}" for name in named.first)


def histogram(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items() if count) or "none"


def modes(found: dict[str, Named]) -> Iterator[str]:
    for mode, named in sorted(found.items(), key=lambda item: -item[1].count):
        names = ", ".join(named.first[:NAMED_MODES]) + (", ..." if named.count > NAMED_MODES else "")
        yield f"{mode}: {named.count}" + ("" if mode in ("RGB", "L") else f" ({names})")


def sides(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
