"""Exercise 8, say the gain before you train. The statement is e8.md."""

from torch import Tensor

from model import ViT


def score(teacher: ViT, images: Tensor, labels: Tensor) -> float:
    """How much a student will gain from copying this teacher's maps: a larger number for a larger gain.

    teacher: any ViT of model.py with a class token. images: (B, 3, S, S), normalised as the teacher wants them.
    labels: (B,), of the student's task. Of the teacher only its maps on these images are used.
    """
    raise NotImplementedError
