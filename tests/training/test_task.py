"""What tasks that read a data set have in common."""

import os

from ldm.training.optim import TrainConfig
from ldm.training.task import DataTask


class WhoReads:
    """Samples of its own kind: the number of the process that reads them."""

    def __len__(self):
        return 8

    def __getitem__(self, key):
        return os.getpid()

    @staticmethod
    def collate(samples):
        return samples


def test_samples_of_a_kind_of_their_own_are_read_without_a_worker():
    read = DataTask(WhoReads(), TrainConfig(batch=3, workers=2)).batches(0, 0, 1)
    assert next(read) == 3 * [os.getpid()]


def test_a_task_has_learned_nothing_else_and_has_no_score_unless_it_says_so():
    task = DataTask(WhoReads(), TrainConfig())
    assert not task.learned.state_dict() and task.score(task.learned) is None
