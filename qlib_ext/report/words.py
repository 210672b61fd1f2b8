"""The words of a tear sheet in English and Chinese: titles, columns, rows, facts, and the sentences under tables."""

from __future__ import annotations

import re
from typing import Optional

from qlib_ext.report import sentences

WORDS: dict[str, tuple[str, str]] = {}
"""Name in a table -> (English, Chinese)."""


def _add(lines: str) -> None:
    """Lines `name | English | Chinese`; two parts where the English is the name with a capital."""
    for row in lines.strip().splitlines():
        name, *said = (part.strip() for part in row.split(" | "))
        WORDS[name] = (said[0] if len(said) == 2 else _capital(name), said[-1])


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:] if name[1:2].islower() else name


_add("""
tear sheet | 研究报告单
comparison | Runs side by side | 模型对比
language | 语言
theme | Colours | 配色
auto | 自动
light | 浅色
dark | 深色
contents | 目录
key figures | 核心指标
leaks | Leak checks | 数据泄露检查
factor | 因子评价
portfolio | 组合业绩
pass | pass | 通过
fail | FAIL | 未通过
all passed | All checks passed | 全部通过
none | none | 无
yes | yes | 是
no | no | 否
not known | not known | 未知
generated market | 模拟市场
not the same test | These runs do not share one test | 各模型的测试口径不一致
run | 模型
""")

# tables and plots
_add("""
summary | 汇总
broker | Week, month, year, since inception | 本周、本月、本年、成立以来
by_week | By week | 分周表现
by_month | By month | 分月表现
by_year | By year | 分年表现
decay | Decay over horizons | 预测期衰减
non_overlapping | Non-overlapping evaluation | 无重叠样本检验
quantiles | Groups | 分组收益
by_board | By board | 分板块表现
by_cap | By market capitalisation | 分市值表现
style_exposure | Style exposure | 风格暴露
industry_exposure | Industry exposure | 行业暴露
neutral | IC after neutralisation | 中性化后的IC
daily | Daily figures | 每日数据
quantile_daily | Daily returns of the groups | 分组日收益
drawdowns | Largest drawdowns | 最大回撤区间
exposure | Active exposures | 主动暴露
attribution | Attribution of excess | 超额收益归因
attribution_daily | Daily attribution | 每日归因
certificates | Certificates of the rebalances | 调仓优化凭证
checks | Leak checks | 数据泄露检查
Net value by group | 分组净值
Long-short and long-only excess | 多空与多头超额净值
RankIC | RankIC
Groups from low to high score | 由低分组到高分组
Decay over horizons | 预测期衰减
IC by year | 分年IC
IC after neutralisation | 中性化后的IC
Autocorrelation of ranks | 排名自相关
Style exposure | 风格暴露
Industry exposure | 行业暴露
Net value | 净值
Excess net value and its drawdown | 超额净值与回撤
Excess by month | 分月超额收益
Drawdown of net value | 净值回撤
Active exposures | 主动暴露
Attribution of excess | 超额收益归因
Attribution over time | 归因累计
Turnover and cost | 换手与成本
Running sum of RankIC | RankIC累计
Excess net value | 超额净值
RankIC by month | 分月RankIC
Facts | 基本信息
""")

# facts
_add("""
experiment | 实验
recorder | 记录编号
model | 模型
universe | 股票池
index | 指数
label | 标签
test | Test segment | 测试区间
scored | Scored days | 得分区间
span | Back-test | 回测区间
entry | Entry price | 成交价
data_until | Data until | 数据截至
store | Data store | 数据
generated | Generated data | 是否模拟数据
best_possible_ic | Best possible IC | IC理论上限
versions | 软件版本
date | 日期
""")

# figures: factor
_add("""
IC | IC
ICIR | ICIR
ICIR annualised | ICIR（年化）
IC t | IC的t值
IC win rate | IC胜率
RankIC | RankIC
RankICIR | RankICIR
RankICIR annualised | RankICIR（年化）
RankIC t | RankIC的t值
RankIC win rate | RankIC胜率
ic | IC | IC
rank_ic | RankIC | RankIC
exp_rank_mae | exp(−RankMAE) | exp(−RankMAE)
exp(-RankMAE) | exp(−RankMAE) | exp(−RankMAE)
long_short | Long-short | 多空
long-short | 多空
universe_equal | Universe, equal weights | 股票池等权
universe_cap | Universe, cap weights | 股票池市值加权
long-short a year | 多空年化收益
top group return | Top group | 多头组收益
turnover of the top group a year | 多头组年换手
autocorrelation | 自相关
autocorrelation of ranks | 排名自相关
coverage | 覆盖率
days | 天数
count | Stocks | 股票数
names | Stocks | 股票数
n | 样本数
value | 数值
note | 说明
figure | 指标
period | 区间
group | 分组
horizon | Horizon (days) | 预测期（天）
style | 风格
industry | 行业
datetime | Date | 日期
return a year | 年化收益
excess a year | 年化超额
volatility | 波动率
mean forward return | 平均未来收益
turnover a year | 年换手
mean | 均值
std | Standard deviation | 标准差
t | t值
top group | Top group less universe | 多头组相对股票池
mean z-score | 平均标准分
active share | 主动份额
raw | 原始
industry+cap | Industry and size | 行业与市值
styles | 风格
Week | 本周
Month to date | 本月以来
Year to date | 今年以来
Since inception | 成立以来
RankIC, mean of the month | RankIC月均值
RankIC, running sum (right) | RankIC累计（右轴）
mean of 20 days | 20日均值
main | Main board | 主板
chinext | ChiNext | 创业板
star | STAR | 科创板
bse | BSE | 北交所
small | 小盘
middle | 中盘
large | 大盘
""")

_add("""
long-only excess a year | 多头年化超额
long-only excess | 多头超额
sign | 方向
equal | equal weights | 等权
cap | cap weights | 市值加权
geometric | geometric | 几何
difference | difference | 差值
first day | 首日
last day | 末日
evaluated | Evaluated on | 取样
week ends | Last days of weeks | 每周末
board | 板块
cap group | 市值组
score | 得分
days without a score | 无得分天数
rebalances without groups | 无法分组的调仓
mean over days | 日均值
per day, not annualised: mean / standard deviation | 日频，未年化：均值／标准差
share of days above 0 | 大于0的天数占比
mean over days; 0.3151 for a random score, 1 for a perfect one | 日均值；随机得分为0.3151，完美为1
daily differences, compounded, before cost | 日收益差复利，费前
growth of the ratio of net values, before cost | 净值比的增长率，费前
no benchmark price | 无基准价格
no market value | 无市值
one-way, without the first purchase | 单边，不含首次建仓
with those of the trading day before | 与前一交易日
scored share of those with a price that day among all ever scored, mean over days | 曾有得分且当日有价格的股票中当日有得分的占比，日均值
pairs of score and label a day, over the days that count | 计入的交易日每日得分与标签的配对数
days with a RankIC | 有RankIC的天数
the portfolios were kept as they were | 组合保持不变
""")

# figures: portfolio
_add("""
gross | Before cost | 费前
net | After cost | 费后
cost | 成本
turnover | 换手
price_index | Price index | 价格指数
total_return | Total return | 成分股全收益
equal_weight | Equal weights | 成分股等权
benchmark a year | 基准年化
tracking error | 跟踪误差
IR | 信息比率
max drawdown | 最大回撤
Max drawdown | 最大回撤
excess max drawdown | Max drawdown of excess | 超额最大回撤
excess drawdown | Drawdown of excess | 超额回撤
Annualised | 年化
Calmar | 卡玛比率
weekly win rate | 周胜率
cost a year | 年化成本
return | 收益
of | 对象
rank | 序号
start | 开始
trough | 最低
end | 恢复
depth | 幅度
net value | 净值
excess | 超额
part | 来源
sum | Sum of days | 逐日合计
a year | A year | 年化
industries | 行业
country | Market | 市场
selection | 选股
other | 其他
residual | 残差
total | 合计
industry deviation | 行业偏离
invested | 仓位
turnover of the month | Turnover of the month, bought + sold | 当月换手（双边）
cost, running sum | 成本累计
what | 内容
rebalances | 调仓次数
status | 求解状态
relaxed | 放松
binding | 起作用
optimal | optimal | 最优
inaccurate | inaccurate | 精度不足
relaxed: none | 放松：无
style exposure | style exposure | 风格暴露
largest violation of a constraint | 约束最大违反量
largest gap | 最大间隙
forecast tracking error, mean | 预测跟踪误差，均值
forecast tracking error, largest | 预测跟踪误差，最大
turnover of a rebalance, mean | 单次调仓换手，均值
cost of a rebalance, mean | 单次调仓成本，均值
names, mean | 持股数，均值
invested, least | 仓位，最低
share in index members, least | 成分股占比，最低
excess a year before cost | 年化超额（费前）
IR of daily differences | 日差信息比率
over | 基准
segment_end | Segment end | 区间截断
shuffled_labels | Shuffled labels | 打乱标签
delayed_features | Delayed features | 特征滞后
future_corrupted | Corrupted future | 篡改未来数据
too_good | Too good | IC过高
not run | not run | 未进行
check | 检查项
passed | 是否通过
limit | 界限
sample | 样本
""")

# styles, and the industries of Shenwan's first level by their Chinese names
_add("""
size | 市值
beta | 贝塔
momentum | 动量
residual_volatility | Residual volatility | 残差波动率
nonlinear_size | Non-linear size | 非线性市值
book_to_price | Book to price | 账面市值比
liquidity | 流动性
earnings_yield | Earnings yield | 盈利率
growth | 成长
leverage | 杠杆
size_squared | Size squared | 市值平方
roe | Return on equity | 净资产收益率
sue | Earnings surprise | 盈余惊喜
volatility_60 | Volatility of 60 days | 60日波动率
bp | Book to price (plain) | 市净率倒数
hf_skew | Intraday skewness | 日内偏度
hf_down_share | Downside volatility share | 下行波动占比
hf_buy_intention_share | Buy intention after the open, share | 开盘后买入意愿占比
hf_buy_intention_intensity | Buy intention after the open, intensity | 开盘后买入意愿强度
hf_large_buy_share | Large net buying after the open, share | 开盘后大单净买入占比
hf_large_buy_intensity | Large net buying after the open, intensity | 开盘后大单净买入强度
hf_improved_reversal | Improved reversal | 改进反转
hf_tail_share | Share of the last half hour | 尾盘成交占比
hf_outflow_share | Outflow of a single trade | 平均单笔流出金额占比
hf_push_up | Push-up by large trades | 大单推动涨幅
农林牧渔 | Agriculture | 农林牧渔
基础化工 | Basic chemicals | 基础化工
钢铁 | Steel | 钢铁
有色金属 | Non-ferrous metals | 有色金属
电子 | Electronics | 电子
汽车 | Automobiles | 汽车
家用电器 | Household appliances | 家用电器
食品饮料 | Food and beverages | 食品饮料
纺织服饰 | Textiles and apparel | 纺织服饰
轻工制造 | Light manufacturing | 轻工制造
医药生物 | Pharma and biotech | 医药生物
公用事业 | Utilities | 公用事业
交通运输 | Transport | 交通运输
房地产 | Real estate | 房地产
商贸零售 | Retail and trade | 商贸零售
社会服务 | Consumer services | 社会服务
银行 | Banks | 银行
非银金融 | Non-bank financials | 非银金融
综合 | Conglomerates | 综合
建筑材料 | Building materials | 建筑材料
建筑装饰 | Construction | 建筑装饰
电力设备 | Power equipment | 电力设备
机械设备 | Machinery | 机械设备
国防军工 | Defence | 国防军工
计算机 | Computers | 计算机
传媒 | Media | 传媒
通信 | Telecom | 通信
煤炭 | Coal | 煤炭
石油石化 | Oil and petrochemicals | 石油石化
环保 | Environment | 环保
美容护理 | Beauty care | 美容护理
""")


PATTERNS: list[tuple[str, str, str]] = [
    (r"[Ee]xcess over (.+)", "Excess over {0}", "相对{0}超额"),
    (r"(.+) \((equal|cap|index|geometric|difference|total_return|price_index|equal_weight)\)", "{0} ({1})", "{0}（{1}）"),
    (r"(.+) / (.+)", "{0} / {1}", "{0} / {1}"),
    (r"Newey-West, lag (\d+)", "Newey-West, lag {0}", "Newey-West，滞后{0}阶"),
    (r"ICIR x sqrt\((\d+)\)", "ICIR x sqrt({0})", "ICIR×√{0}"),
    (r"ICIR x sqrt\((\d+) / (\d+)\), as many labels a year do not overlap", "ICIR x sqrt({0} / {1}), as many labels a year do not overlap",
     "ICIR×√({0}／{1})，即每年互不重叠的标签个数"),
    (r"of the (\d+) trading days from the first to the last scored day", "Of the {0} trading days from the first to the last scored day",
     "首末得分日之间共{0}个交易日"),
    (r"Industry (\d+)", "Industry {0}", "行业{0}"),
    (r"offset (\d+)", "Offset {0}", "起点{0}"),
    (r"C(\d+)", "C{0}", "市值组{0}"),
    (r"(status|relaxed|binding): (.+)", "{0}: {1}", "{0}：{1}"),
]
"""Names made of others: regular expression, English, Chinese; the parts are looked up in turn."""

_PLAIN = re.compile(r"[\W\d_]*|Q\d+|[\W\d_]*W\d\d|\d+ days?|[A-Z]{2}\d{6}|csi\d+|all", re.I)
"""What reads alike in both languages: figures, dates, groups, codes."""


def _inside(word: str) -> str:
    """An English word within others: without its capital, unless more of them follow."""
    return word[:1].lower() + word[1:] if word[1:2].islower() else word


_BY_ENGLISH = {form(said): chinese for form in (_inside, str) for said, chinese in reversed(WORDS.values())}


def english(text: object) -> str:
    """The English of a word or sentence."""
    return both(str(text))[0]


def both(text: str) -> tuple[str, str]:
    """A word or sentence in English and in Chinese; what is not known stays as it is, in both."""
    found = _find(text)
    return (text, text) if found is None else found


def known(text: str) -> bool:
    """Whether `both` has a word, a sentence, or each sentence of a text."""
    return _find(text) is not None


def _find(text: str) -> Optional[tuple[str, str]]:
    found = _find_name(text)
    if found is not None:
        return found
    said = sentences.chinese(text, lambda word: found[1] if (found := _find_name(word)) else None)
    return None if said is None else (text, said)


def _find_name(text: str) -> Optional[tuple[str, str]]:
    if text in WORDS or text in _BY_ENGLISH:
        return WORDS.get(text) or (text, _BY_ENGLISH[text])
    if _PLAIN.fullmatch(text):
        return text, text
    for rule, english, chinese in PATTERNS:
        match = re.fullmatch(rule, text)
        parts = [_find_name(part) for part in match.groups()] if match else [None]
        if None not in parts:
            first = int(english.startswith("{0}"))
            inside = [part[0] if place < first or " / " in english else _inside(part[0]) for place, part in enumerate(parts)]
            return english.format(*inside), chinese.format(*(part[1] for part in parts))
    return None
