"""The rolling split, the online phase and what it may know, fine-tuning, rolling retraining."""
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from online_panels import REACH, RULES, TASK, fitted, model, online_panel, same, scores
from qlib_ext.data.sampler import DaySampler
from qlib_ext.errors import ConfigError, DataError, NotFittedError
from qlib_ext.training import incremental as module
from qlib_ext.training.incremental import OnlineRule, TaskSplit, labelled
from qlib_ext.training.rule import forward
from qlib_ext.training.trainer import Trainer


# ---- the split ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("length, support, reach, extra", [(5, 5, 3, 0), (6, 9, 6, 0), (4, 2, 2, 1), (20, 20, 11, 1)])
def test_a_task_learns_what_is_known_at_its_first_query_day(length, support, reach, extra):
    split = TaskSplit(length, support, reach + extra)
    for task in [*split.past(3, 150), *split.online(60, 150), *split.online(60, 150, 93)]:
        known = [day for day in range(task.query[0]) if day + reach + extra <= task.query[0]]      # whose label is there in time
        assert list(range(*task.support)) == known[-support:]
        for day in range(task.query[0], task.query[1] + reach + 3):
            assert list(range(*split.known(task, day))) == [d for d in range(*task.query) if d + reach + extra <= day]


@pytest.mark.parametrize("border", [None, 60, 71, 75, 80, 200])
def test_online_tasks_score_each_day_once_and_one_begins_at_the_border(border):
    tasks = TaskSplit(5, 5, 3).online(60, 93, border)
    days = [day for task in tasks for day in range(*task.query)]
    assert days[:33] == list(range(60, 93)) and days == list(range(60, 60 + len(days)))
    assert all(task.query[1] - task.query[0] == 5 for task in tasks[1:]) and 1 <= tasks[0].query[1] - 60 <= 5
    if border is not None:
        wide = TaskSplit(5, 5, 3).online(60, 210, border)
        assert border in [task.query[0] for task in wide]
    assert TaskSplit(5, 5, 3).online(60, 60) == []


def test_past_tasks_lie_in_the_span_and_use_every_support_once():
    tasks = TaskSplit(5, 5, 3).past(10, 60)
    assert tasks[0].support[0] == 10 and tasks[-1].query[1] <= 60 < tasks[-1].query[1] + 5
    assert [task.support[0] for task in tasks[1:]] == [task.support[1] for task in tasks[:-1]]


# ---- what may be known --------------------------------------------------------------------------------------------------------
def corrupted(panel, day, reach=REACH, seed=0):
    """Features, day values and universe after `day`, and labels that are not known at its close, are others."""
    other, draw = copy.deepcopy(panel), np.random.default_rng([seed, day])
    later = panel.rows[day + 1:]
    later = later[later >= 0]
    other.blocks["stock"].values[later] = 5 * draw.standard_normal((len(later), panel.n_features))
    other.day_aux["market"][day + 1:] = draw.standard_normal(other.day_aux["market"][day + 1:].shape)
    other.universe[day + 1:] = draw.random(other.universe[day + 1:].shape) < 0.5
    unknown = panel.rows[day - reach + 1:]
    unknown = unknown[unknown >= 0]
    for table in (other.label, other.label_eval, other.label_raw):
        table[unknown] = draw.standard_normal((len(unknown), 1))
    return other


def leaks(made, panel, days) -> list:
    """Days up to which scores change when what was not known at their close does."""
    before = scores(made, panel, 43, 80)
    return [day for day in days if not same(before[:day + 1], scores(made, corrupted(panel, day), 43, 80)[:day + 1])]


@pytest.mark.parametrize("name", RULES)
def test_a_score_knows_nothing_after_its_day(name):
    panel = online_panel()
    assert leaks(fitted(name), panel, [45, 48, 58, 63, 66, 68]) == []             # first query days of tasks, and days inside
    after = scores(fitted(name), corrupted(panel, 63), 43, 80)
    assert not same(scores(fitted(name), panel, 43, 80)[68:], after[68:]), "nothing was learnt from what was changed: nothing was shown"


def test_before_the_close_not_even_that_close_is_needed(monkeypatch):
    """What `before_close` learns at a task's first day needs no label of that day's close; `after_close` does, and is caught."""
    panel = online_panel()
    assert [day for day in (48, 58, 63) if not same(*(scores(fitted("before_close"), one, 43, 80)[:day + 1]
                                                      for one in (panel, corrupted(panel, day, REACH + 1))))] == []
    honest = OnlineRule.split
    monkeypatch.setattr(OnlineRule, "split", lambda self, reach: replace(honest(self, reach), gap=reach))
    assert [day for day in (48, 58, 63) if not same(*(scores(fitted("before_close"), one, 43, 80)[:day + 1]
                                                      for one in (panel, corrupted(panel, day, REACH + 1))))]


def test_a_label_used_a_day_too_early_is_caught(monkeypatch):
    panel = online_panel()
    honest = OnlineRule.split
    monkeypatch.setattr(OnlineRule, "split", lambda self, reach: replace(honest(self, reach), gap=reach - 1))
    for name in ("incremental", "maml", "doubleadapt"):
        assert leaks(fitted(name), panel, [48, 58, 63])


def test_no_label_is_touched_before_it_is_known(monkeypatch):
    """Whatever a rule asks of the training sampler while it decides a task, is of days whose labels are known."""
    panel, seen, decided = online_panel(), [], [0]
    task_of, batch = OnlineRule.seed_of, DaySampler.batch

    def watch_task(self, panel, task):
        decided[0] = max(decided[0], task.query[0])
        return task_of(self, panel, task)

    def watch_batch(self, day):
        if self.panel.training and decided[0]:
            seen.append((decided[0], int(day)))
        return batch(self, day)

    made = fitted("doubleadapt")
    monkeypatch.setattr(OnlineRule, "seed_of", watch_task)
    monkeypatch.setattr(DaySampler, "batch", watch_batch)
    scores(made, panel, 43, 80)
    assert len(seen) > 100 and all(day + REACH <= decision for decision, day in seen)
    assert max(day + REACH - decision for decision, day in seen) == 0, "the latest labels that are known are used"


@pytest.mark.parametrize("name", RULES)
def test_what_is_scored_with_it_does_not_matter(name):
    panel = online_panel()
    whole = scores(fitted(name), panel, 0, 80)
    for first, last in ((0, 43), (43, 58), (60, 61), (66, 80)):
        assert same(whole[first:last], scores(fitted(name), panel, first, last)[first:last])
    assert np.array_equal(np.isfinite(whole), panel.universe & (panel.rows >= 0))


# ---- going on -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("stop", [50, 66, 68])
def test_going_on_is_one_run(name, stop, tmp_path):
    """Fit and score up to a day where the data end; later, with more data, go on from the saved state."""
    panel = online_panel()
    together = scores(fitted(name), panel, 43, 80)
    first = scores(fitted(name), corrupted(panel, stop - 1), 43, stop)                # what comes later is not there yet
    fitted(name).save_online(tmp_path / "state.pt")
    going_on = model(RULES[name], online_state=str(tmp_path / "state.pt")).fit_panel(panel)
    second = scores(going_on, panel, stop, 80)
    assert same(first[:stop], together[:stop]) and same(second[stop:], together[stop:])
    going_on.save_online(tmp_path / "again.pt")       # and once more
    assert same(scores(model(RULES[name], online_state=str(tmp_path / "again.pt")).fit_panel(panel), panel, 78, 80)[78:], together[78:])


def test_a_state_that_does_not_belong(tmp_path, capsys):
    panel, path = online_panel(), tmp_path / "state.pt"
    made = model(RULES["doubleadapt"]).fit_panel(panel)
    with pytest.raises(NotFittedError, match="predict first"):
        made.save_online(path)
    scores(made, panel, 58, 70)
    made.save_online(path)

    def go_on(panel=panel, rule=RULES["doubleadapt"], **options):
        return scores(model(rule, online_state=str(path), **options).fit_panel(panel), panel, 70, 80)

    for said, options in (("rule: .*0.01.* here", {"rule": {**RULES["doubleadapt"], "lr": 0.01}}), ("net_options", {"hidden_size": 7}),
                          ("trainer", {"trainer": {"lr": 0.5}}), ("loss", {"loss": "ic"}), ("rule", {"rule": RULES["maml"]})):
        with pytest.raises(ConfigError, match=f"another configuration .*{said}"):
            go_on(**options)
    with pytest.raises(ConfigError, match="universe"):
        go_on(online_panel(meta={"embargo": REACH, "universe": "csi500"}))
    with pytest.raises(ConfigError, match="no online state"):
        go_on(rule="static")
    for change in ("label", "window", "universe"):
        changed = online_panel()
        if change == "label":
            changed.label[changed.rows[60, changed.stocks(60)]] += 1
        elif change == "window":
            changed.blocks["stock"].values[changed.rows[54, changed.stocks(54)]] += 1
        else:
            changed.universe[60] = ~changed.universe[60]
        with pytest.raises(DataError, match="not those the online state has learnt from"):
            go_on(changed)
    going_on = model(RULES["doubleadapt"], online_state=str(path)).fit_panel(panel)
    with pytest.raises(ConfigError, match="has learnt what followed"):
        scores(going_on, panel, 58, 66)
    assert "were scored by the run" not in capsys.readouterr().out
    assert np.isnan(scores(going_on, panel, 58, 80)[:68]).all() and "were scored by the run that left the state" in capsys.readouterr().out
    path.write_bytes(b"PK")
    with pytest.raises(DataError, match="state.pt cannot be read"):
        go_on()
    with pytest.raises(DataError, match="does not exist"):
        model(RULES["maml"], online_state=str(tmp_path / "no.pt")).fit_panel(panel)


def test_a_panel_that_lacks_the_days():
    panel = online_panel()
    short = replace(panel, **{name: getattr(panel, name)[50:] for name in ("rows", "days", "universe", "lookup")},
                    day_aux={}, segments={}, span=None)
    with pytest.raises(DataError, match="is no day of the panel"):
        fitted("incremental").predict_panel(short)


# ---- fine-tuning --------------------------------------------------------------------------------------------------------------
def test_incremental_is_a_plain_loop():
    panel = online_panel()
    rule = {"name": "incremental", "task_length": TASK, "lr": 0.01, "passes": 2}
    made = model(rule, dropout=0.0, trainer={"clip_value": 0.1}).fit_panel(panel)
    found = scores(made, panel, 43, 80)
    net = copy.deepcopy(made.net_)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    optimizer.load_state_dict(copy.deepcopy(made.rule.optimizer_state))
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    learn, show = DaySampler(panel.view((0, 80), training=True)), DaySampler(panel.view((43, 80)))
    for first in [43, *range(48, 80, TASK)]:          # 58, the first test day, begins a task: the tasks are 43 .. 47, 48 .. 52, ...
        for _ in range(2):
            for day in range(first - REACH - TASK + 1, first - REACH + 1):
                batch = learn.batch(day)
                if batch.mask.sum() < 2:
                    continue
                net.train()
                optimizer.zero_grad()
                made.rule.loss(forward(net, batch), batch).backward()
                torch.nn.utils.clip_grad_value_(net.parameters(), 0.1)
                optimizer.step()
        net.eval()
        for day in range(first, min(first + TASK, 80)):
            if day in show.panel.scored_days():
                batch = show.batch(day)
                np.testing.assert_allclose(found[day, batch.stocks], forward(net, batch).detach().numpy(), rtol=1e-5, atol=1e-7)
    assert made.rule.figures()["adaptation"] > 1e-3


def test_a_step_that_diverges_is_named():
    panel = online_panel()
    for rule, options in (({"name": "incremental", "task_length": TASK, "lr": 50.0}, {}),
                          ({"name": "maml", "task_length": TASK, "lr": 1e6, "inner": "sgd"}, {"epochs": 0})):
        with pytest.raises(DataError, match=r"scores 2020-02-13 onwards diverges .*2020-02-06 .. 2020-02-10.*smaller lr"):
            scores(model(rule, **options).fit_panel(panel), panel, 43, 80)
    panel.blocks["stock"].values[panel.rows[46, panel.stocks(46)]] = np.inf
    with pytest.raises(DataError, match="scores of 2020-02-16, in the task from 2020-02-13 on, are not finite"):
        scores(fitted("incremental"), panel, 43, 80)


# ---- rolling retraining ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("window", ["expanding", "sliding"])
def test_rolling_retraining_is_a_row_of_static_models(window, capsys):
    panel = online_panel()
    rolled = model({"name": "rolling_retrain", "task_length": 8, "window": window}).fit_panel(panel)
    found = scores(rolled, panel, 0, 80)
    assert "task 2 of 3" in capsys.readouterr().out
    for number, (first, last) in enumerate([(0, 66), (66, 74), (74, 80)]):
        shift = 8 * number
        moved = replace(panel, segments={"train": (shift if window == "sliding" else 0, 40 + shift), "valid": (43 + shift, 55 + shift),
                                         "test": (58 + shift, 80)})
        assert same(found[first:last], scores(model("static").fit_panel(moved), moved, first, last)[first:last])
    for day in (65, 66, 73):
        assert same(found[:day + 1], scores(model(rolled.options["rule"]).fit_panel(corrupted(panel, day)), panel, 0, 80)[:day + 1])


def test_later_tasks_are_trained_when_they_are_scored():
    panel = online_panel()
    short = replace(panel, segments={**panel.segments, "test": (58, 68)})
    rule = {"name": "rolling_retrain", "task_length": 8}
    rolled, whole = model(rule).fit_panel(short), model(rule).fit_panel(panel)
    assert sorted(rolled.rule.nets) == [1]
    assert same(scores(rolled, panel, 58, 80), scores(whole, panel, 58, 80)) and sorted(rolled.rule.nets) == [1, 2]


def test_an_interrupted_rolling_fit_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("QLIB_EXT_HOME", str(tmp_path))
    panel, fits, original = online_panel(), [], Trainer._train_epoch
    rule, trainer = {"name": "rolling_retrain", "task_length": 8}, {"resume": True}

    def counted(self, net, rule, run, sampler, epoch):
        fits.append(str(sampler.panel.span))
        if len(fits) == 6:
            raise KeyboardInterrupt
        return original(self, net, rule, run, sampler, epoch)

    whole = model(rule, trainer=trainer).fit_panel(panel)
    monkeypatch.setattr(Trainer, "_train_epoch", counted)
    with pytest.raises(KeyboardInterrupt):
        model(rule, trainer=trainer).fit_panel(panel)
    assert fits == ["(0, 40)"] * 2 + ["(0, 48)"] * 2 + ["(0, 56)"] * 2
    again = model(rule, trainer=trainer).fit_panel(panel)
    assert fits[6:] == ["(0, 56)"], "only the epoch that was interrupted is run"
    assert same(scores(again, panel, 43, 80), scores(whole, panel, 43, 80)) and not list((tmp_path / "fits").iterdir())


# ---- bad input ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rule, said", [
    ({"name": "maml", "task_length": 2}, "task_length=2 is not above the label horizon.*3 trading days later.*smallest.*works is 3"),
    ({"name": "doubleadapt", "task_length": 3, "update": "before_close"}, "smallest that works is 4"),
    ({"name": "maml", "task_length": 23}, "test segment has 22 trading days, a task 23"),
    ({"name": "incremental", "task_length": 23}, "test segment has 22 trading days, a task 23"),
    ({"name": "rolling_retrain", "task_length": 23}, "test segment has 22 trading days, a task 23"),
    ({"name": "maml", "task_length": 20, "support": 20}, "train segment has 40 trading days, one task with its support takes 42"),
    ({"name": "incremental", "task_length": 0}, "task_length=0 must be a whole number, positive"),
    ({"name": "incremental", "lr": -1}, "lr=-1 must be a number, not negative"), ({"name": "incremental", "passes": 0}, "passes=0"),
    ({"name": "maml", "pretrain_epochs": 2}, "pretrain_epochs=2 leaves none of the trainer's 2 epochs"),
    ({"name": "doubleadapt", "adapt_y": "no"}, "adapt_y='no' must be true or false"), ({"name": "maml", "lr": float("inf")}, "lr=inf"),
    ({"name": "maml", "update": "noon"}, "'noon'.*after_close"), ({"name": "maml", "inner": "lbfgs"}, "'lbfgs'.*sgd"),
    ({"name": "maml", "online": {"lr_adapter": 1}}, r"\['lr_adapter'\].*lr_model"), ({"name": "maml", "online": 0.1},
                                                                                     "online=0.1 must name"), ({"name": "maml",
                                                                                                                "support": True},
                                                                                                               "support=True"),
    ({"name": "doubleadapt", "adapter": "film"}, "'film'.*dense"), ({"name": "rolling_retrain", "window": "wide"}, "'wide'.*sliding"),
])
def test_bad_input_is_said_before_anything_is_trained(rule, said, monkeypatch):
    monkeypatch.setattr(Trainer, "fit", lambda *args, **kwargs: pytest.fail("training began"))
    with pytest.raises(ConfigError, match=said):
        model(rule).fit_panel(online_panel())


def test_the_inner_optimiser_needs_moments_and_the_panel_a_reach():
    with pytest.raises(ConfigError, match="SGD has none.*inner: sgd"):
        model({"name": "maml", "inner": "adam", "task_length": TASK}, trainer={"optimizer": "sgd"})
    with pytest.raises(ConfigError, match="when its labels become known"):
        model(RULES["maml"]).fit_panel(online_panel(meta={}))


def test_without_validation_the_online_phase_follows_the_training_labels():
    panel = online_panel()
    bare = replace(panel, segments={name: panel.segments[name] for name in ("train", "test")})
    made = model(RULES["incremental"]).fit_panel(bare)
    scores(made, bare, 0, 80)
    assert made.rule.report[0]["date"] == str(panel.days[39 + REACH])
    assert str(panel.days[58]) in [row["date"] for row in made.rule.report]


def test_a_rule_without_a_place_to_begin():
    panel = online_panel()
    with pytest.raises(ConfigError, match="give the dataset a segment test"):
        model("rolling_retrain").fit_panel(replace(panel, segments={"train": (0, 40), "valid": (43, 55)}))
    with pytest.raises(ConfigError, match="valid begins before train ends"):
        model(RULES["incremental"]).fit_panel(replace(panel, segments={**panel.segments, "valid": (30, 45)}))
    panel.label[panel.rows[5:]] = np.nan
    with pytest.raises(DataError, match="no unit of the rule in the training span 2020-01-01"):
        model(RULES["maml"]).fit_panel(panel)


def test_labelled_days_are_those_of_training_labels():
    panel = online_panel()
    panel.label[panel.rows[20, panel.stocks(20)]] = np.nan
    assert 20 not in labelled(DaySampler(panel), (15, 25)) and 21 in labelled(DaySampler(panel), (15, 25))
    assert module.mean([]) != module.mean([])
