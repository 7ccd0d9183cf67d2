"""Exercise 8: say the gain before you train. See exercises/e8.md."""

from torch import Tensor

from model import ViT


def score(teacher: ViT, images: Tensor, labels: Tensor) -> float:
    """Returns a number that is larger, the more a student will gain from copying this teacher's maps.

    teacher: any ViT from model.py with a class token. images: (B, 3, S, S), normalised as the teacher expects.
    labels: (B,), for the student's task. From the teacher, only its maps on these images are used.
    """
    raise NotImplementedError
