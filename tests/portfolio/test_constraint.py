"""Each constraint writes the limit its formula says, and what cannot be meant is refused by name."""
import numpy as np
import pytest
from optimizer_cases import BENCHMARK, SIZE, five_program

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.portfolio.constraint import Cap, Industry, Investment, TrackingError, check_missing, make_constraints
from qlib_ext.portfolio.optimizer import IndexEnhancer
from qlib_ext.portfolio.preset import CNE5, PRESETS, preset_constraints
from qlib_ext.portfolio.program import Program


def bands(program: Program) -> dict[str, tuple[float, float]]:
    found = zip(program.names, program.band_low, program.band_high)
    return {name: (low, high) for name, low, high in found if np.isfinite(low) or np.isfinite(high)}


@pytest.mark.parametrize("limits, low, high", [
    ({}, [0] * 5, [1] * 5),
    ({"cap": 0.4}, [0] * 5, [0.4] * 5),
    ({"benchmark_multiple": 2}, [0] * 5, [0.6, 0.5, 0.4, 0.3, 0.2]),
    ({"benchmark_multiple": {"multiple": 2, "floor": 0.35}}, [0] * 5, [0.6, 0.5, 0.4, 0.35, 0.35]),
    ({"active_weight": 0.12}, [0.18, 0.13, 0.08, 0.03, 0], [0.42, 0.37, 0.32, 0.27, 0.22]),
    ({"cap": 0.4, "active_weight": 0.12}, [0.18, 0.13, 0.08, 0.03, 0], [0.4, 0.37, 0.32, 0.27, 0.22]),
])
def test_bounds_of_weights(limits, low, high):
    program = five_program(limits)
    np.testing.assert_allclose(program.low, low, atol=1e-15)
    np.testing.assert_allclose(program.high, high, atol=1e-15)


@pytest.mark.parametrize("limits, expected", [
    ({"industry": 0.02}, {"industry:x": (-0.02, 0.02), "industry:y": (-0.02, 0.02)}),
    ({"industry": {"default": 0.02, "x": 0.01}}, {"industry:x": (-0.01, 0.01), "industry:y": (-0.02, 0.02)}),
    ({"industry": {"industry:y": 0.03}}, {"industry:y": (-0.03, 0.03)}),
    ({"style": 0.5}, {"size": (-0.5, 0.5)}),
    ({"style": {"size": 0.1, "size_squared": 0.2}}, {"size": (-0.1, 0.1), "size_squared": (-0.2, 0.2)}),
    ({"style": {"default": 0.5}}, {"size": (-0.5, 0.5)}),
    ({"member_share": 0.8}, {"member_share": (-0.2, np.inf)}),
])
def test_bands_by_name(limits, expected):
    found = bands(five_program(limits, extras={"size_squared": SIZE**2 - 2}))
    assert found.keys() == expected.keys()
    for name, sides in expected.items():
        np.testing.assert_allclose(found[name], sides, atol=1e-12)


def test_a_band_holds_the_active_exposure():
    program = five_program({"style": {"size": 0.5}, "industry": 0.1})
    moved = BENCHMARK + [0.2, 0, 0, 0, -0.2]                  # size 0.2 x (2 + 2) = 0.8; x 0.2 more, y 0.2 less
    over = program.violations(moved)
    assert over["size"] == pytest.approx(0.3) and over["industry:x"] == pytest.approx(0.1) and over["industry:y"] == pytest.approx(0.1)


def test_member_share_counts_the_members_given():
    program = five_program({"member_share": 0.9}, members=np.array([True, True, False, False, False]))
    assert program.violations(BENCHMARK)["member_share"] == pytest.approx(0.9 - 0.55)
    assert program.violations(np.array([0.5, 0.4, 0.1, 0, 0]))["member_share"] == pytest.approx(0)


def test_tracking_error_turnover_and_investment():
    program = five_program({"tracking_error": 0.05, "turnover": 0.3, "investment": {"low": 0.9, "high": 1.0}})
    assert (program.tracking, program.turnover, program.invested) == (0.05, 0.3, (0.9, 1.0))
    first = five_program({"turnover": 0.3}, current=np.zeros(5))
    assert first.turnover is None and first.invested == (1.0, 1.0)


def test_scale_widens_absolute_caps_and_nothing_else():
    limits = {"cap": 0.03, "active_weight": 0.02, "benchmark_multiple": {"multiple": 5, "floor": 0.01}, "minimum_position": 0.001,
              "minimum_trade": 0.0005, "industry": 0.02, "turnover": 0.3}
    program = five_program({**limits, "active_weight": None, "cap": None}, scale=3.0)
    np.testing.assert_allclose(program.high, np.minimum(5 * BENCHMARK, 1))
    assert (program.minimum_position, program.minimum_trade, program.turnover) == (pytest.approx(0.003), pytest.approx(0.0015), 0.3)
    assert bands(program)["industry:x"] == (-0.02, 0.02)
    np.testing.assert_allclose(five_program({"cap": 0.1}, scale=3.0).high, 0.3)
    np.testing.assert_allclose(five_program({"cap": 0.5}, scale=3.0).high, 1.0)
    np.testing.assert_allclose(five_program({"active_weight": 0.02}, scale=3.0).low, BENCHMARK - 0.06)


def test_a_factor_widens_bands_and_tracking_error():
    program = Program(five_program({}).case)
    Industry(0.02).apply(program, 1.5)
    TrackingError(0.04).apply(program, 1.25)
    assert bands(program.close())["industry:x"] == (pytest.approx(-0.03), pytest.approx(0.03)) and program.tracking == pytest.approx(0.05)


@pytest.mark.parametrize("config, says", [
    ({"caps": 0.03}, "did you mean cap"),
    ({"zzz": 1}, "choose from"),
    ({"cap": 1.5}, "cap: limit must be a number from 0 to 1"),
    ({"cap": -0.1}, "cap: limit"),
    ({"cap": "3%"}, "cap: limit"),
    ({"cap": True}, "cap: limit"),
    ({"cap": float("nan")}, "cap: limit"),
    ({"cap": {"maximum": 0.1}}, "unknown keyword 'maximum'"),
    ({"benchmark_multiple": {"floor": 0.1}}, "benchmark_multiple: .*multiple"),
    ({"benchmark_multiple": -1}, "multiple must be"),
    ({"active_weight": -0.01}, "active_weight: width"),
    ({"industry": -0.02}, "industry: default"),
    ({"industry": {}}, "needs a width"),
    ({"style": {"size": "wide"}}, "style: size"),
    ({"member_share": 1.2}, "member_share: share"),
    ({"tracking_error": -0.05}, "tracking_error: limit"),
    ({"turnover": -0.3}, "turnover: limit"),
    ({"investment": {"low": 1.0, "high": 0.9}}, "low 1.0 is above high 0.9"),
    ({"minimum_position": 2}, "minimum_position: weight"),
    ({"minimum_trade": -1}, "minimum_trade: weight"),
])
def test_what_cannot_be_meant_is_refused(config, says):
    with pytest.raises(ConfigError, match=says):
        make_constraints(config)


@pytest.mark.parametrize("options, says", [
    ({"preset": "dl_me"}, "did you mean dl_em"),
    ({"ladder": [{"cap": 1.5}]}, "'cap' cannot be relaxed"),
    ({"ladder": [{"style": 0.9}]}, "style needs a factor above 1"),
    ({"ladder": [{"style": None}]}, "style needs a factor above 1"),
    ({"ladder": [{"style": 1.5, "industry": 1.5}]}, "each rung is one family"),
    ({"ladder": ["style"]}, "each rung is one family"),
    ({"missing_styles": "dropp"}, "did you mean drop"),
    ({"solver": "ecos"}, "choose one of"),
    ({"pull": -1.0}, "pull must be"),
    ({"cost_aversion": float("nan")}, "cost_aversion must be"),
    ({"risk_aversion": float("inf")}, "risk_aversion must be"),
])
def test_options_that_cannot_be_meant_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        IndexEnhancer(**options)


def test_full_investment_unless_something_else_is_said():
    made = make_constraints({"cap": None})
    assert [type(one) for one in made] == [Investment] and (made[0].low, made[0].high) == (1.0, 1.0)
    assert [type(one) for one in make_constraints({"investment": {"low": 0.9}, "cap": 0.1})] == [Investment, Cap]


def test_missing_styles_are_an_error_or_named():
    case = five_program({}).case
    styles = make_constraints({"style": {"size": 0.5, "roe": 0.3}, "industry": {"z": 0.1, "x": 0.1}})
    assert check_missing(styles, case, "drop") == {"missing_styles": ["roe"], "missing_industries": ["z"]}
    with pytest.raises(DataError, match="no style roe.*its styles: size"):
        check_missing(styles, case, "error")
    assert check_missing(make_constraints({"industry": {"z": 0.1, "x": 0.1}}), case, "error") == {"missing_industries": ["z"]}


def test_bands_on_all_of_what_the_risk_model_lacks():
    case = five_program({}).case
    case.factors = tuple(name.replace("industry:", "deep_") for name in case.factors)
    for missing in ("error", "drop"):
        if missing == "error":
            with pytest.raises(DataError, match="no factors for industry bands"):
                check_missing(make_constraints({"industry": 0.1}), case, missing)
        else:
            assert check_missing(make_constraints({"industry": 0.1}), case, missing) == {"missing_styles": ["all of industry"]}


def test_presets_are_what_the_reports_say():
    assert set(PRESETS) == {"dl_em", "meta", "ai_wide", "ai_strict"} and len(CNE5) == 10
    assert PRESETS["dl_em"] == {"cap": 0.03, "industry": 0.02, "style": {name: 0.5 for name in CNE5}, "tracking_error": 0.05}
    assert PRESETS["meta"] == {"benchmark_multiple": 5, "industry": 0.02, "style": {"size": 0.5}}
    assert PRESETS["ai_wide"] == {"cap": 0.01, "industry": 0.01, "style": {"size": 0.3}, "turnover": 0.3}
    assert PRESETS["ai_strict"] == {"cap": 0.01, "industry": 0.01, "member_share": 0.8, "turnover": 0.3,
                                    "style": {"size": 0.1, "size_squared": 0.1, "roe": 0.3, "sue": 0.3, "volatility_60": 0.3}}
    for name in PRESETS:
        make_constraints(PRESETS[name])


def test_constraints_lie_over_those_of_a_preset():
    laid = preset_constraints("meta", {"industry": None, "turnover": 0.1, "style": {"size": 0.2}})
    assert laid == {"benchmark_multiple": 5.0, "industry": None, "style": {"size": 0.2}, "turnover": 0.1}
    assert {one.name for one in make_constraints(laid)} == {"investment", "benchmark_multiple", "style", "turnover"}
    assert preset_constraints(None, None) == {}
