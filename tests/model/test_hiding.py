"""Banned names as classes of a catalogue."""

import torch

from model.hiding import banned
from model.vocabulary import Catalogue

CATALOGUE = Catalogue(("a", "b", "c", "d"), buckets=3)


def test_names_are_classes_and_strangers_are_left_out():
    found = banned(["c", "a", "elsewhere"], CATALOGUE, torch.device("cpu"))
    assert found.classes.tolist() == [1, 3]
    assert found.places.tolist() == [2, 0, 2, 1, 2]
    assert found.has(torch.tensor([[0, 1], [2, 3]])).tolist() == [[False, True], [False, True]]


def test_the_most_popular_are_the_first_that_are_left():
    found = banned(["c", "a"], CATALOGUE, torch.device("cpu"))
    assert found.most_popular(1).tolist() == [2]
    assert found.most_popular(4).tolist() == [2, 4, 0, 0]
