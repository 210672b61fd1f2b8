"""Style exposures: their scale, what they are orthogonal to, what stands in, and what is said of it."""
import numpy as np
import pytest

from qlib_ext.errors import ConfigError, DataError, ShapeError
from qlib_ext.risk.descriptor import STYLES
from qlib_ext.risk.style import coverage, possible, style_exposures
from qlib_ext.risk.weighted import fill, standardize, winsorize

DAYS, STOCKS = 330, 120
FIRST = 300


@pytest.fixture(scope="module")
def market():
    draw = np.random.default_rng(0)
    shape = (DAYS, STOCKS)
    fields = {"cap": np.exp(draw.normal(22, 1.3, STOCKS)) * np.exp(np.cumsum(draw.normal(0, 0.01, shape), axis=0)),
              "market": draw.normal(0, 0.012, DAYS), "turnover": np.exp(draw.normal(-4, 0.7, shape))}
    fields["returns"] = np.outer(fields["market"], draw.uniform(0.4, 1.6, STOCKS)) + draw.normal(0, 0.02, shape) * draw.uniform(0.5, 2, STOCKS)
    fields["total_cap"] = fields["cap"].copy()
    slow = lambda scale: np.broadcast_to(fields["cap"][0] * draw.lognormal(0, 0.5, STOCKS) * scale, shape).copy()  # noqa: E731
    fields.update({"equity": slow(0.5), "preferred_equity": np.zeros(shape), "long_term_debt": slow(0.2), "total_debt": slow(0.4),
                   "total_assets": slow(1.2), "net_profit_ttm": slow(0.05) - slow(0.02), "operating_cash_flow_ttm": slow(0.06)})
    for year in range(5):
        fields[f"eps_y{year}"], fields[f"sales_y{year}"] = draw.normal(1, 0.3, shape), draw.lognormal(20, 0.2, shape)
    fields["returns"][:250, 7], fields["turnover"][:250, 7] = np.nan, np.nan           # listed late: no momentum, beta on 80 days
    fields["returns"][:315, 8], fields["turnover"][:329, 8] = np.nan, np.nan           # new: nothing of its own but size
    fields["cap"][:, 9], fields["total_cap"][:, 9] = np.nan, np.nan
    fields["returns"][305:327, 10] = np.nan                                            # suspended for a month
    fields["daily_returns"] = fields["returns"].copy()
    members = draw.random(shape) < 0.9
    industry = np.broadcast_to(draw.integers(0, 4, STOCKS) * 10.0, shape).copy()
    industry[:, 11] = np.nan
    return fields, members, industry


def make(market, styles=None, drop=(), first=FIRST, **changes):
    fields, members, industry = market
    fields = {name: part for name, part in fields.items() if name not in drop}
    options = dict(cap=fields.get("cap", np.ones((DAYS, STOCKS))), members=members, industry=industry, styles=styles, first=first, **changes)
    return style_exposures(fields, **options)


@pytest.fixture(scope="module")
def whole(market):
    return make(market)


def test_ten_styles_with_cap_weighted_mean_0_and_deviation_1(market, whole):
    fields, members, _ = market
    cap, inside = fields["cap"][FIRST:], members[FIRST:] & (fields["cap"][FIRST:] > 0)
    assert whole.names == STYLES and whole.values.shape == (DAYS - FIRST, STOCKS, 10) and whole.missing == {}
    for k in range(10):
        value = whole.values[:, :, k]
        assert np.isfinite(value[:, np.arange(STOCKS) != 9]).all() and np.isnan(value[:, 9]).all()
        for t in range(len(value)):
            assert abs((cap[t] * np.where(inside[t], value[t], 0))[inside[t]].sum() / cap[t][inside[t]].sum()) < 1e-9
            assert np.std(value[t][inside[t]]) == pytest.approx(1, abs=1e-9)


def test_residual_volatility_and_nonlinear_size_are_orthogonal_under_the_regression_weights(market, whole):
    fields, members, _ = market
    at = {name: whole.values[:, :, k] for k, name in enumerate(whole.names)}
    for style, others in (("nonlinear_size", ["size"]), ("residual_volatility", ["beta", "size"])):
        for other in others:
            for t in range(DAYS - FIRST):
                used = members[FIRST + t] & (fields["cap"][FIRST + t] > 0)
                x, y = at[other][t][used], at[style][t][used]
                w = np.sqrt(fields["cap"][FIRST + t][used])
                x, y = x - w @ x / w.sum(), y - w @ y / w.sum()
                assert abs(w @ (x * y)) / np.sqrt((w @ x**2) * (w @ y**2)) < 1e-9, (style, other, t)
    used = members[FIRST] & (fields["cap"][FIRST] > 0)
    assert abs(np.corrcoef(at["size"][0][used] ** 3, at["size"][0][used])[0, 1]) > 0.5   # the raw cube is not


def test_size_squared_is_orthogonal_to_size_and_extras_come_alone(market):
    made = make(market, ["size_squared", "volatility_60", "bp", "roe"])
    assert made.names == ("size_squared", "volatility_60", "bp", "roe")
    size = make(market, ["size"]).values[:, :, 0]
    used = market[1][FIRST] & (market[0]["cap"][FIRST] > 0)
    w = np.sqrt(market[0]["cap"][FIRST][used])
    x, y = size[0][used] - w @ size[0][used] / w.sum(), made.values[0, used, 0]
    assert abs(w @ (x * y)) < 1e-9 * w.sum()
    np.testing.assert_array_equal(make(market, ["bp"]).values, make(market, ["book_to_price"]).values)


def test_a_composite_renormalises_the_weights_of_what_a_stock_has(market):
    fields, members, industry = market
    made = make(market, ["liquidity"])
    inside = members[FIRST:] & (fields["cap"][FIRST:] > 0)
    parts = []
    for window in (21, 63, 252):
        mean = np.stack([np.nanmean(fields["turnover"][t - window + 1:t + 1], axis=0) for t in range(FIRST, DAYS)])
        known = np.stack([np.isfinite(fields["turnover"][t - window + 1:t + 1]).sum(axis=0) for t in range(FIRST, DAYS)])
        value = np.where(known >= window // 2, np.log(21 * mean), np.nan)
        parts.append(standardize(winsorize(value, inside), inside, fields["cap"][FIRST:]))
    parts, weight = np.stack(parts), np.array([0.35, 0.35, 0.30])[:, None, None]
    there = np.isfinite(parts)
    combined = (weight * np.nan_to_num(parts)).sum(axis=0) / (weight * there).sum(axis=0)
    assert (~there[2, :, 7] & there[1, :, 7]).any()                                     # one has a quarter, and no year
    combined = standardize(combined, inside, fields["cap"][FIRST:])
    own = made.own[:, :, 0]
    differ = (made.values[:, :, 0] - combined)[own & inside]
    assert np.ptp(differ) < 0.2 and np.corrcoef(made.values[own, 0], combined[own])[0, 1] > 0.9999  # one filled stock shifts the scale


def test_own_and_filled_values_are_told_apart(market, whole):
    own = {name: whole.own[:, :, k] for k, name in enumerate(whole.names)}
    assert not own["momentum"][:, 7].any() and own["beta"][20:, 7].all() and own["size"][:, 8].all()
    assert not own["beta"][:, 8].any() and not own["liquidity"][:29, 8].any()
    rows = coverage(whole, market[1][FIRST:], np.datetime64("2021-01-04") + np.arange(DAYS - FIRST))
    beta = next(row for row in rows if row["style"] == "beta")
    inside = market[1][FIRST:]
    assert beta["own"] == pytest.approx((own["beta"] & inside).sum() / inside.sum()) and beta["descriptors"] == "BETA"
    assert 0 < beta["filled"] < 0.05 and beta["year"] == 2021 and len(rows) == 10


def test_fill_is_the_regression_on_industry_and_size():
    draw = np.random.default_rng(1)
    n = 60
    size, group = draw.standard_normal((1, n)), draw.integers(0, 3, (1, n))
    value = 0.5 * size + np.array([-1.0, 0.0, 2.0])[group]
    holes = value.copy()
    holes[0, ::7] = np.nan
    group[0, 0], holes[0, group[0] == 3] = 3, np.nan                                    # an industry of one, without the style
    full = fill(holes, size, group, np.ones((1, n), bool), np.exp(draw.standard_normal((1, n))))
    np.testing.assert_allclose(full[0, 7::7], value[0, 7::7], atol=1e-9)
    assert np.isfinite(full).all() and abs(full[0, 0]) < 3
    kept = np.isfinite(holes)
    np.testing.assert_array_equal(full[kept], holes[kept])
    assert np.isnan(fill(np.full((1, n), np.nan), size, group, np.ones((1, n), bool), np.ones((1, n)))).all()


def test_fewer_fields_give_fewer_styles_and_the_reason(market):
    fundamentals = [name for name in market[0] if name not in ("cap", "total_cap", "market", "turnover", "returns", "daily_returns")]
    made = make(market, drop=fundamentals)
    assert made.names == ("size", "beta", "momentum", "residual_volatility", "nonlinear_size", "liquidity")
    assert set(made.missing) == {"book_to_price", "earnings_yield", "growth", "leverage"} and "equity" in made.missing["book_to_price"]
    bare = style_exposures({k: market[0][k] for k in ("returns", "daily_returns", "market")}, np.ones((DAYS, STOCKS)), market[1], first=FIRST)
    assert bare.names == ("beta", "momentum", "residual_volatility") and "LNCAP lacks cap" in bare.missing["size"]
    assert np.isfinite(bare.values).all()
    with pytest.raises(DataError, match="no style"):
        style_exposures({"amount": market[0]["cap"]}, market[0]["cap"], market[1])
    with pytest.raises(ConfigError, match="unknown styles"):
        possible(["cap"], ["value"])


def test_a_style_that_is_constant_on_a_day_is_unknown_on_that_day_only(market):
    fields, members, industry = market
    flat = {**fields, "operating_cash_flow_ttm": fields["cap"] * 0.1, "net_profit_ttm": fields["net_profit_ttm"]}
    flat["net_profit_ttm"] = np.where(np.arange(DAYS)[:, None] == DAYS - 1, fields["cap"] * 0.05, fields["net_profit_ttm"])
    made = style_exposures(flat, fields["cap"], members, industry, ["earnings_yield"], first=FIRST)
    assert np.isnan(made.values[-1]).all() and np.isfinite(made.values[:-1, 0]).all()


def test_days_and_stocks_later_change_nothing_and_windows_suffice_to_the_bit(market, whole):
    fields, members, industry = market
    cut = 315
    noisy = {name: part.copy() for name, part in fields.items()}
    for part in noisy.values():
        part[cut + 1:] = 3.0
    later = style_exposures(noisy, noisy["cap"], members, industry, first=FIRST)
    np.testing.assert_array_equal(later.values[:cut + 1 - FIRST], whole.values[:cut + 1 - FIRST])
    assert not np.array_equal(later.values[cut + 1 - FIRST], whole.values[cut + 1 - FIRST])
    short = {name: part[:cut + 1] for name, part in fields.items()}
    alone = style_exposures(short, short["cap"], members[:cut + 1], industry[:cut + 1], first=cut)
    np.testing.assert_array_equal(alone.values[0], whole.values[cut - FIRST])


def test_the_order_of_stocks_does_not_matter(market, whole):
    order = np.random.default_rng(2).permutation(STOCKS)
    fields = {name: part if part.ndim == 1 else part[:, order] for name, part in market[0].items()}
    made = style_exposures(fields, fields["cap"], market[1][:, order], market[2][:, order], first=FIRST)
    np.testing.assert_allclose(made.values, whole.values[:, order], atol=1e-9)


def test_inputs_are_not_changed_and_shapes_are_checked(market):
    fields, members, industry = market
    before = {name: part.copy() for name, part in fields.items()}
    make(market, ["beta", "residual_volatility"])
    for name, part in fields.items():
        np.testing.assert_array_equal(part, before[name])
    with pytest.raises(ShapeError, match="returns"):
        style_exposures({**fields, "returns": fields["returns"][1:]}, fields["cap"], members, industry)
    with pytest.raises(ShapeError, match="bool"):
        style_exposures(fields, fields["cap"], members.astype(float), industry)


def test_a_style_that_few_have_is_left_out_of_the_day(market):
    fields, members, industry = market
    few = {**fields, "equity": np.where(np.arange(STOCKS) % 3 == 0, fields["equity"], np.nan)}
    made = style_exposures(few, fields["cap"], members, industry, ["book_to_price", "beta"], first=FIRST)
    assert np.isnan(made.values[:, :, 0]).all() and np.isfinite(made.values[:, 0, 1]).all()
    most = {**fields, "equity": np.where(np.arange(STOCKS) % 3 != 0, fields["equity"], np.nan)}
    made = style_exposures(most, fields["cap"], members, industry, ["book_to_price"], first=FIRST)
    assert np.isfinite(made.values[:, 10, 0]).all() and not made.own[:, 0, 0].any()
