"""The authors' data: folders and LMDBs that EHM-Tracker writes, read-only."""

from guava.data.convert import to_tracked_sequence
from guava.data.pairs import ReleasePairs, TrainingPair, TrainingView, collate_pairs
from guava.data.parameters import ModelSizes, part_boxes
from guava.data.release import Damage, ReleaseClip, ReleaseDataset, ReleaseIdentity, open_release_dataset

__all__ = [
    "Damage",
    "ModelSizes",
    "ReleaseClip",
    "ReleaseDataset",
    "ReleaseIdentity",
    "ReleasePairs",
    "TrainingPair",
    "TrainingView",
    "collate_pairs",
    "open_release_dataset",
    "part_boxes",
    "to_tracked_sequence",
]
