"""Text encoders. ``TEXT_ENCODERS`` maps a configuration's name to the dataclass that builds it."""

from ldm.text.clip import ClipConfig

TEXT_ENCODERS = {"clip": ClipConfig}
