"""The sentences of a report in Chinese: what stands under tables, notes, and what leak checks found.

A sentence is an English form with ``{name}`` where a value stands, and a Chinese one with the same names.
"""

from __future__ import annotations

import re
from typing import Callable, Optional

from qlib_ext.report.factor_text import SENTENCES as FACTOR

FACTOR_CHINESE = {
    "entry": "t日得分在收盘后可知，于t+1日以{entry}成交。",
    "label": "标签：模型的原始标签，覆盖{horizon_days}，相邻交易日的标签{overlap}。",
    "no label": "标签：自t+1日{entry}至t+1+{horizon}日{entry}的收益，相邻交易日的标签{overlap}。",
    "daily": "配对少于{min_count}个的交易日不计入；自相关为当日得分与前一交易日得分的秩相关。",
    "per day": "ICIR为日频，未年化；t值为Newey-West，滞后{horizon}阶。",
    "decay": "收益自t+1日{entry}至t+1+h日{entry}，h为预测期；每个交易日都计入，预测期越长重叠越多：ICIR为日频、未年化，t值为Newey-West，滞后阶数等于预测期。",
    "thinned": "仅取标签互不重叠的交易日：自第k个有得分的交易日起，每{horizon_th}个交易日取一个（起点k）；以及每{weeks_th}周的最后一个交易日"
               "（遇假期，相邻两个标签可能有几天重叠）；年化：乘以每年此类交易日个数的平方根；t值视各期相互独立。",
    "held": "按{when}的得分等权分组，次日以{entry}买入并持有；某日收益自前一日{entry}至当日{entry}，费前。",
    "not formed": "没有形成任何组合：该类交易日均无法分组。",
    "universes": "Q{quantiles}为得分最高组，得分相同的股票归入同一组；多空为当日Q{quantiles}减Q1；股票池基准按同样规则持有全部有得分的股票，分别为等权与市值加权。",
    "not tradable": "成交时买不进的股票不买，由其余目标股票分摊；卖不出的股票保持原权重，已持有而不能再买的股票亦同；两次调仓之间权重随价格漂移，无价格的"
                    "股票沿用最近价格，连续60个交易日无价格后以该价格卖出。",
    "a year": "复利，每年{days_a_year}个交易日；超额为相对股票池等权的净值比的年增长率；换手为单边，不含首次建仓。",
    "forward": "平均未来收益：每日分组的标签均值，再对各日取平均（标签{overlap}）。",
    "to date": "各区间均截至最后一个有得分的交易日。",
    "windows": "区间内复利，未年化，一周自上周最后一个交易日至本周最后一个交易日；超额为Q{quantiles}收益减股票池或指数收益（指数为不含股息的价格指数，而个股价格含股息）；多空为日收益差的复利；IC、RankIC与"
               "exp(−RankMAE)为区间内各得分日的均值。",
    "part": "在组别内部排名，每日至少需要{min_count}个配对。",
    "cap groups": "按当日市值将有得分的股票等数量分组；在组内排名，每日至少需要{min_count}个配对。",
    "style": "每日得分排名与风格的相关系数：均值、标准差、Newey-West t值（滞后{exposure_lag}阶）；多头组：当日Q{quantiles}的风格均值减全部有得分股票的风格均值，"
             "再对各日取平均。",
    "industry": "行业内股票的平均标准分（当日标准化）；多头组：当日行业在Q{quantiles}中的只数占比减其在全部有得分股票中的占比；均为各日平均，行业未知的股票不计入。",
    "neutral": "将当日得分对常数项与行业哑变量、对数市值或全部风格做最小二乘回归，取残差；缺少任一变量的股票、以及得分完全被解释的交易日不计入该行。",
    "left out": "未给出：{left_out}。",
}
"""Name of a sentence of `factor_text` -> its Chinese."""

OTHERS: list[tuple[str, str]] = [
    # portfolio
    ("Simple returns of a day; net = gross - cost; turnover is bought + sold over the account.", "日简单收益；费后＝费前－成本；换手为买入与卖出之和除以账户资产。"),
    ("Benchmarks: {benchmarks}.", "基准：{benchmarks}。"),
    ("After cost unless said; {days} days a year.", "除注明外均为费后；每年{days}个交易日。"),
    ("Returns a year are compounded; excess (geometric) is the growth a year of net value / benchmark, excess (difference) the "
     "difference of the two returns a year.",
     "年化收益按复利计算；几何超额为净值与基准之比的年增长率，差值超额为两个年化收益之差。"),
    ("Tracking error: standard deviation of daily differences, a year; IR = excess (geometric) / tracking error, IR of daily "
     "differences = their mean / standard deviation, a year.",
     "跟踪误差：日收益差的年化标准差；信息比率＝几何超额／跟踪误差；日差信息比率＝日收益差的年化均值／标准差。"),
    ("Calmar = excess (geometric) / drawdown of net value / benchmark.", "卡玛比率＝几何超额／净值与基准之比的最大回撤。"),
    ("Turnover is one-way.", "换手为单边。"),
    ("After cost, to {day}.", "费后，截至{day}。"),
    ("Week, month and year to date: compounded return from the last trading day before the period; excess is the difference of two "
     "compounded returns.",
     "本周、本月、本年：自区间前最后一个交易日起复利计算；超额为两个复利收益之差。"),
    ("Annualised excess and its drawdown are those of net value / benchmark; IR = annualised excess / tracking error (under return: "
     "annualised return / volatility).",
     "年化超额及其回撤取自净值与基准之比；信息比率＝年化超额／跟踪误差（收益一列为年化收益／波动率）。"),
    ("After cost, compounded from the last trading day before the {period}; excess is the difference of two compounded returns.",
     "费后，自该{period}前最后一个交易日起复利计算；超额为两个复利收益之差。"),
    ("Excess drawdown: the largest fall of net value / {benchmark} inside the {period}.", "超额回撤：该{period}内净值与{benchmark}之比的最大跌幅。"),
    ("The deepest falls after cost: from the day of the high (start) to the day back at it (end; none: not yet); days are trading days.",
     "费后最大跌幅：自创高日（开始）至收复日（恢复；空：尚未收复）；天数为交易日。"),
    ("Excess: of net value / {benchmark}.", "超额：净值与{benchmark}之比。"),
    ("Active return over {benchmark} after cost, in parts of each day: active weights x exposures of the close before x factor returns "
     "of the day; selection: active weights x specific returns; other: trades of the day, stocks the risk model does not know, drift.",
     "相对{benchmark}的费后主动收益逐日分解：主动权重×前一收盘暴露×当日因子收益；选股：主动权重×特质收益；其他：当日交易、风险模型未覆盖的股票与权重漂移。"),
    ("`return` is linked (Carino), so that the parts add to the difference of the compounded returns; `sum` adds up days; a year = "
     "daily mean x {days}; t of the daily mean.",
     "“收益”经Carino法链接，各部分之和等于两个复利收益之差；“逐日合计”为日值之和；年化＝日均值×{days}；t值针对日均值。"),
    ("Parts of the day's active return over {benchmark} (as in attribution), fractions; they add to total.",
     "当日相对{benchmark}的主动收益各部分（同归因表），以小数表示，相加为合计。"),
    ("At the close of the day, portfolio minus index weights: styles in standard deviations (stocks without exposures count as 0), "
     "industry deviation = sum over industries of |active weight|, active share = half the sum over stocks; names held, and the part "
     "of the account that is invested.",
     "当日收盘，组合减指数权重：风格以标准差为单位（无暴露的股票计为0），行业偏离＝各行业主动权重绝对值之和，主动份额＝各股票主动权重绝对值之和的一半；另有持股数与仓位。"),
    ("Of the certificates that the optimiser leaves with every rebalance: counts of rebalances by status, with a relaxed constraint, "
     "with a binding one (of a family); violation and gap as solved, forecast tracking error a year.",
     "取自优化器每次调仓留下的凭证：按求解状态、被放松的约束、起作用的约束（按类）统计的调仓次数；求解时的违反量与间隙；预测年化跟踪误差。"),
    # leak checks
    ("passed: True, False, or empty where a check could not be run.", "是否通过：是、否；检查无法进行时为空。"),
    ("IC: mean over days of the correlation of score and raw label; standard errors by Newey and West over the days on which labels "
     "overlap.",
     "IC：得分与原始标签相关系数的日均值；标准误按Newey-West，滞后为标签重叠的天数。"),
    ("A check that passes found nothing on its sample.", "通过仅表示在所取样本上未发现问题。"),
    ("Scores of the first days are bit-equal when the test segment ends earlier.", "测试区间提前结束时，前面各日的得分逐位相同。"),
    ("Scores of the first days are the same within {size} of the largest score when the test segment ends earlier.",
     "测试区间提前结束时，前面各日的得分相同，误差不超过最大得分的{size}。"),
    ("Scores of a day depend on later days being there: {what}.", "某日得分取决于之后的数据是否存在：{what}。"),
    ("Look for statistics or batches that run over the whole segment.", "请检查跨越整个区间的统计量或批次。"),
    ("The model, trained anew on labels shuffled within each day, does not predict: |IC| {figure} with {worst}, limit {limit} + 3 "
     "standard errors.",
     "用当日内打乱的标签重新训练后，模型没有预测力：|IC| {figure}（{worst}），界限{limit}加3个标准误。"),
    ("Trained on labels shuffled within each day, which teach nothing, the model predicts all the same: |IC| {figure} with {worst}.",
     "用当日内打乱、毫无信息的标签训练后，模型仍有预测力：|IC| {figure}（{worst}）。"),
    ("Labels reach the scores on another way: look at features, and at what predict reads.", "标签经其他途径进入得分：请检查特征以及预测时读取的数据。"),
    ("IC with inputs of the day, {older}: {figures}: it collapses with inputs one day older, as if it came from the next day's bar.",
     "使用当日输入及{older}输入的IC：{figures}：输入滞后一日即崩塌，如同来自次日行情。"),
    ("Look for features that look ahead by a day.", "请检查提前一日的特征。"),
    ("IC with inputs of the day, {older}: {figures}: it fades as forecasts do.", "使用当日输入及{older}输入的IC：{figures}：衰减正常。"),
    ("IC with inputs of the day, {older}: {figures}: it fades fast; look whether some input is known only later.",
     "使用当日输入及{older}输入的IC：{figures}：衰减很快，请检查是否有输入实际更晚才可知。"),
    ("IC with inputs of the day, {older}: {figures}; too small (limit {limit}) for a collapse to say anything.",
     "使用当日输入及{older}输入的IC：{figures}；过小（界限{limit}），崩塌与否无从判断。"),
    ("With the daily bars after a day t changed at random and all inputs made anew, inputs and scores of days up to t stay; {count} "
     "input values of later days change.",
     "将t日之后的日线随机改写并重新生成全部输入，t日及之前的输入与得分不变；之后的输入有{count}个值改变。"),
    ("With the daily bars after a day t changed at random, {what} of days up to t change: they know the future.",
     "将t日之后的日线随机改写，t日及之前的{what}发生改变：用到了未来数据。"),
    ("|IC| on the test is {figure}, not above {limit} ({why}).", "测试区间|IC|为{figure}，未超过{limit}（{why}）。"),
    ("|IC| on the test is {figure}, above {limit} ({why}): a leak until the opposite is shown.",
     "测试区间|IC|为{figure}，超过{limit}（{why}）：在证明并非泄露之前视为泄露。"),
    # weekly table
    ("Nothing later than the close of {day} is used.", "只使用{day}收盘及之前的数据。"),
    ("IC and exp(-RankMAE): means over the days of the scores whose return, over {horizon_days} from the {entry} of the next day on, ended "
     "in the period.",
     "IC与exp(−RankMAE)：得分次日以{entry}买入、持有{horizon_days}的收益在区间内结束的各得分日的均值。"),
    ("Tenths of equal weight by the score of the last trading day of each week, bought at the {entry} of the next day and held; a day's "
     "return runs from the {entry} of the day before to its own; before cost.",
     "按每周最后一个交易日的得分等权分十组，次日以{entry}买入并持有；某日收益自前一日{entry}至当日{entry}，费前。"),
    ("Long-short: highest tenth less lowest tenth, daily differences, compounded; long-only excess: return of the highest tenth less that "
     "of all scored stocks alike.",
     "多空：最高组减最低组，日收益差复利；多头超额：最高组收益减全部有得分股票等权的收益。"),
    ("Each period ends on that day; a row that begins inside a period (first day) has only its own days in it.",
     "各区间均截至该日；首日晚于区间起点者，仅含其自身各日。"),
    ("Sign \N{MINUS SIGN}1: the score is multiplied by \N{MINUS SIGN}1, since low values are expected to foretell high returns.",
     "方向为−1者，得分乘以−1：预期低值对应高收益。"),
    # notes and the page itself
    ("This market is generated: its prices, companies and signal are made up.", "本市场为程序生成：价格、公司与信号均属虚构。"),
    ("Results on it show that the software works and compare models under a known signal; they say nothing on what anybody would earn "
     "in a real market.",
     "其结果仅用于说明软件可用、并在已知信号下比较模型，与真实市场中的收益无关。"),
    ("Generated market ({store}; best possible on these pairs, by the true expectation of {label}: IC {ic}, RankIC {rank_ic}).",
     "模拟市场（{store}；同样样本上按{label}的真实期望，上限为IC {ic}、RankIC {rank_ic}）。"),
    ("Generated market ({store}; no signal at all: best possible IC 0).", "模拟市场（{store}；完全没有信号：IC上限为0）。"),
    ("Generated market ({store}; best possible IC: no day has {count} pairs).", "模拟市场（{store}；IC上限：没有一天有{count}个配对）。"),
    ("Generated market ({store}, made anew or gone since {run} ran): best possible IC over all years {best}.",
     "模拟市场（{store}，{run}运行后已重新生成或不存在）：全部年份IC上限{best}。"),
    ("Generated market; best possible IC over all years: {best}.", "模拟市场；全部年份IC上限：{best}。"),
    ("Whether the data of {run} were generated is not known: its store is not there any more, or another one.",
     "{run}的数据是否为程序生成未知：原数据已不存在或已更换。"),
    ("Nothing can be known in it: the best possible IC is 0.", "其中没有可预测的信号：IC理论上限为0。"),
    ("Whether the data were generated is not known.", "数据是否为程序生成未知。"),
    ("They differ in:", "差异："),
    ("Note:", "注："),
    ("The last {shown} of {count} rows; the recorder has all.", "共{count}行，此处为最后{shown}行；记录中保存全部。"),
    ("no index: name one (index: csi300) to hold the signal against it", "未指定指数：可用 index 参数指定（如 csi300）"),
    ("no active weights: the index of the strategy is not known; name it (index: csi300)", "无主动权重：策略所用指数未知，可用 index 参数指定（如 csi300）"),
    ("no raw labels (label.pkl): figures rest on returns from the store alone", "没有原始标签（label.pkl）：全部指标取自数据中的收益"),
    ("the label of the run is not known: taken as a return over {days}", "模型标签未知：按{days}收益处理"),
    ("styles are known on {known} of {count} days: the risk snapshots in {folder} lack the others",
     "{count}天中有{known}天有风格：风险快照{folder}缺其余各日"),
    ("no styles: the risk snapshots in {folder} hold none of the days", "无风格：风险快照{folder}不含所需日期"),
    ("no exposures: the risk snapshots in {folder} hold none of the days", "无暴露：风险快照{folder}不含所需日期"),
    ("the store has no volume: a day with prices counts as traded", "数据没有成交量：有价格的交易日视为可交易"),
    ("the store has no price limits: stocks locked at their limit count as traded", "数据没有涨跌停价：涨跌停股票视为可交易"),
    ("the store has no market values: nothing is weighted by them", "数据没有市值：不作市值加权"),
    ("not run: {count} scored days are too few to cut", "未进行：有得分的{count}天太少，无法截断"),
    ("not run: {count} scored days are too few", "未进行：有得分的{count}天太少"),
    ("not run: the recorder keeps no task, which says how the model is made: give `task`", "未进行：记录中没有模型配置，请给出 task"),
    ("not run: the recorder keeps no task with the handler's configuration: give `task`", "未进行：记录中没有数据处理配置，请给出 task"),
    ("not run: labels of {kind} could not be shuffled", "未进行：{kind}的标签无法打乱"),
    ("not run: the market is generated, and its true expectation is gone: build the demo again", "未进行：模拟市场的真实期望已不存在，请重新生成"),
    ("not run: there is no common limit for labels over {days} days (IC {figure})", "未进行：{days}日标签没有通用界限（IC {figure}）"),
    ("not run: noise in the daily bars after {days} reached no input of the days after it; inputs are not made of the store's daily "
     "bars",
     "未进行：{days}之后日线中的噪声没有进入其后的任何输入；输入并非取自日线"),
    ("test ends after {points} of {count} days, and after one day less", "{count}天中于第{points}天截断，另各提前一天"),
    ("{count} retrainings of {model} ({sizes}), measured up to {day}, {days}", "{model}重新训练{count}次（{sizes}），评估至{day}，{days}"),
    ("{count} test days, the scores of one and two trading days before in the place of the day's", "{count}个测试日，以前一、前二交易日的得分代替当日得分"),
    ("noise after {days}; inputs of these days and of one day before each, {count} scores; index members, fundamentals and risk "
     "snapshots as they are",
     "{days}之后为噪声；比较这些日期及各自之前一日的输入、{count}个得分；指数成分、财务数据与风险快照不变"),
    ("{count} test days", "{count}个测试日"),
    ("not run: {reason}", "未进行：{reason}"),
    ("the store has no float_cap: {cap} weighs instead", "数据没有流通市值：以{cap}代替"),
    ("the store has no field {field}: the members of {index} weigh alike in active weights", "数据没有字段{field}：计算主动权重时{index}成分股按等权处理"),
    ("no styles: there are no risk snapshots of the store yet (styles: true makes them, as `python -m qlib_ext.risk build` does)",
     "无风格：该数据尚无风险快照（设 styles: true 或运行 python -m qlib_ext.risk build 可生成）"),
    ("{days} without any prediction between the first and the last: {list}", "首末预测日之间有{days}没有预测：{list}"),
    ("{days} with fewer than {count} scores (no IC): {list}", "{days}的得分少于{count}个（无IC）：{list}"),
    ("{days} on which all scores are alike (no IC): {list}", "{days}的得分全部相同（无IC）：{list}"),
    ("the risk model does not know stocks with {share} of the weight of {index} (mean of the days): what they earned is in `other`",
     "风险模型未覆盖占{index}权重{share}的股票（日均）：其收益计入“其他”"),
    ("{missing} of {count} days have no risk snapshot: all they earned is in `other`", "{count}天中有{missing}天没有风险快照：其收益全部计入“其他”"),
    ("only the back-test's own benchmark (price_index): this recorder has no benchmarks.pkl, which PortfolioRecord leaves",
     "仅有回测自带的基准（价格指数）：该记录没有 PortfolioRecord 生成的 benchmarks.pkl"),
]

VALUES: list[tuple[str, str]] = [
    (r"(\d+) trading days?", "{}个交易日"), (r"(\d+)(?:st|nd|rd|th) ", "{}"), (r"do not overlap", "不重叠"), (r"overlap by (.+)", "重叠{}"),
    (r"the last trading day of each week", "每周最后一个交易日"),
    (r"every trading day", "每个交易日"), (r"every (\d+)(?:st|nd|rd|th) trading day", "每{}个交易日"),
    (r"(\d+) days? older", "滞后{}日"), (r"(\d+) test days?", "{}个测试日"), (r"vwap", "成交均价"), (r"open", "开盘价"), (r"close", "收盘价"),
    (r"week", "周"), (r"month", "月"), (r"year", "年"),
    (r"the scores", "得分"), (r"the inputs (.+)", "输入{}"), (r"(\d+) days?", "{}日"),
    (r"the index as quoted, without dividends \(which adjusted prices of stocks carry, so it flatters\)",
     "指数点位，不含分红（股票复权价含分红，故对其的超额偏高）"),
    (r"the members with their weights, dividends included", "成分股按权重，含分红"), (r"the members alike, dividends included", "成分股等权，含分红"),
    (r"the index \(no benchmark price\)", "指数（无基准价格）"),
    (r"the cap-weighted universe and by_cap \(no market value\)", "股票池市值加权与分市值表现（无市值）"), (r"by_board \(no board\)", "分板块表现（无板块）"),
    (r"style_exposure \(no styles\)", "风格暴露（无风格）"), (r"industry_exposure \(no industry\)", "行业暴露（无行业）"),
    (r"neutral to (.+) \(no (.+)\)", "对{}中性化（缺{}）"),
    (r"0\.10, more than labels over (.+) days of A-shares allow", "0.10，A股{}日标签一般达不到"), (r"one to five", "1至5"),
    (r"that of the true expectation on the same pairs of this generated market", "该模拟市场同样样本上真实期望的IC"),
    (r"3 standard errors, on a generated market without any signal", "无信号模拟市场的3个标准误"),
    (r"other stocks are scored \((.+)\)", "得分的股票不同（{}）"),
    (r"scores change by up to (\S+) of the largest score \((.+)\)", "得分变化达最大得分的{}（{}）"),
]
"""Values inside sentences: regular expression, Chinese with a ``{}`` for each of its groups."""


def _compiled(english: str) -> tuple[re.Pattern, list[str]]:
    parts = re.split(r"\{(\w+)\}", english)
    rule = "".join("(.*?)" if place % 2 else re.escape(part) for place, part in enumerate(parts))
    return re.compile(rule + (r"(?:\s+|$)" if parts[-1] else "$")), parts[1::2]                # a value at the end takes all the rest


FORMS = [(*_compiled(english), FACTOR_CHINESE[name]) for name, english in FACTOR.items() if name in FACTOR_CHINESE]
FORMS += [(*_compiled(english), chinese) for english, chinese in OTHERS]


def chinese(text: str, word: Callable[[str], Optional[str]]) -> Optional[str]:
    """A text of known sentences in Chinese, None where one is not known; `word` gives the Chinese of a name inside, or None."""
    said, rest = "", text.strip()
    while rest:
        found = next(((match, names, form) for rule, names, form in FORMS if (match := rule.match(rest))), None)
        if found is None:
            return None
        match, names, form = found
        values = {name: _value(value, word) for name, value in zip(names, match.groups())}
        said, rest = said + form.format(**values), rest[match.end():]
    return said or None


def _value(value: str, word: Callable[[str], Optional[str]]) -> str:
    """A value in Chinese: known as one, or part by part where it lists several; else as it is."""
    for rule, form in VALUES:
        match = re.fullmatch(rule, value)
        if match:
            return form.format(*(_value(part, word) for part in match.groups()))
    found = word(value)
    if found is not None:
        return found
    for mark, join in (("; ", "；"), (" = ", "＝"), (", ", "、")):
        if mark in value:
            return join.join(_value(part, word) for part in value.split(mark))
    return value
