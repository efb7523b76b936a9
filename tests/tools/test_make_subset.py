"""The choice of images for the bundled subset: the first ones of each class, in their order."""

from __future__ import annotations

import numpy as np

from tools.make_subset import first_of_each_class


def test_first_of_each_class_keeps_the_order() -> None:
    labels = np.array([2, 0, 2, 1, 2, 0, 0, 1], np.uint8)
    np.testing.assert_array_equal(first_of_each_class(labels, 2), [0, 1, 2, 3, 5, 7])
