import numpy as np
import pytest

from model.first_pass import held_out
from tests.model.test_learner import make_learner


def test_held_out_waits_are_those_of_each_user_that_end_where_nothing_was_learned():
    material = make_learner().material
    data = material.data
    places, log_seconds = held_out(material)["time"]
    wanted = {}
    for place, (user, following) in enumerate(zip(data.users[:-1], data.users[1:], strict=True)):
        if user == following and data.order[place + 1] >= material.learn_until:
            wanted[place] = np.log(1 + (data.times_ms[place + 1] - data.times_ms[place]) / 1000)
    assert places.tolist() == list(wanted)
    assert log_seconds[places] == pytest.approx(np.array(list(wanted.values())))
    assert len(wanted) > 20
