"""Settings: durations, validation, and saving."""

import pytest

from jaxface import config


@pytest.mark.parametrize(
    ("duration", "want"),
    [
        ("3 steps", 3),
        ("2 epochs", 20),  # 100 examples in batches of 10
        ("0.05 epochs", 1),  # rounded up
        ("64 examples", 7),
        ("1e2 examples", 10),
        ("50 percent", 200),
    ],
)
def test_durations_become_steps(duration, want):
    assert config.steps(duration, batch_size=10, examples=100, total=400) == want


@pytest.mark.parametrize(
    "duration", ["3", "steps", "3 weeks", "-1 steps", "nan epochs", "3  steps", "1 2"]
)
def test_other_durations_are_refused(duration):
    with pytest.raises(ValueError, match="wanted a number and one of"):
        config.steps(duration, batch_size=1, examples=1)


def test_the_length_of_a_run_is_no_percentage():
    with pytest.raises(ValueError, match="no percentage"):
        config.steps("3 percent", batch_size=1, examples=1)


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(AttributeError, match=r"Did you mean.*warmup"):
        config.base().optim.warm_up = "1 epochs"


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("mesh.how", "xla", "mesh.how is 'xla'; wanted one of jit, pmap"),
        ("data.batch_size", 0, "data.batch_size is 0; wanted 1"),
        ("eval.every", "0 steps", "wanted more than nothing"),
        ("optim.ema", 1.0, "optim.ema is 1.0"),
        ("optim.sam", -0.1, "optim.sam is -0.1; wanted 0"),
        ("train.microbatches", 0, "train.microbatches is 0; wanted 1"),
        ("data.processes", -1, "data.processes is -1; wanted 0"),
    ],
)
def test_validation_names_key_value_and_choices(key, value, match):
    c = config.base()
    c.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=match):
        config.validate(c)


def test_the_defaults_are_valid():
    config.validate(config.base())


def test_saving_and_reading_is_the_identity():
    c = config.base()
    with c.unlocked():
        c.eval.sets = {"lfw": "pairs_bin(path='a')|verification"}
    c.optim.lr = 0.3
    again = config.loads(config.dumps(c))
    assert config.dumps(again) == config.dumps(c)
    assert not config.differences(c, again)


def test_batches_are_made_by_one_kind_of_others():
    c = config.base()
    c.data.processes, c.data.service = 2, "a:7070"
    with pytest.raises(ValueError, match=r"data.processes=2 and data.service=.*one of"):
        config.validate(c)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"eval": {"sets": {}}, "new": 1}'])
def test_what_is_no_config_is_refused(text):
    with pytest.raises(ValueError, match="not a config"):
        config.loads(text)


def test_differences_leave_out_what_does_not_touch_the_result():
    a, b = config.base(), config.base()
    b.log.every, b.data.loader, b.optim.lr = "1 steps", "host", 0.5
    assert config.differences(a, b) == ["optim.lr: 0.1 there, 0.5 here"]
