"""The frame of a tear sheet: its style sheet, switches for language and colours, words in two languages, tables."""

from __future__ import annotations

import re
from html import escape, unescape
from typing import Any, Sequence

import pandas as pd

from qlib_ext.report.cells import cell, kind_of
from qlib_ext.report.drawing import DARK, LIGHT, css_variables
from qlib_ext.report.words import both

LANGUAGES = ("en", "zh")
TALL = 16
"""Rows above which a table scrolls in a box of its own on a screen."""

STYLE = """
*{box-sizing:border-box}
body{margin:0;font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","PingFang SC","Hiragino Sans GB",
"Microsoft YaHei","Noto Sans CJK SC","Noto Sans SC","WenQuanYi Micro Hei",sans-serif;-webkit-text-size-adjust:100%}
.switch{position:absolute;opacity:0;pointer-events:none}
main{LIGHT}
@media (prefers-color-scheme:dark){body{background:DARK-PAGE}main{DARK}}
#theme-light:checked~main{LIGHT}
#theme-dark:checked~main{DARK}
main{background:var(--page);color:var(--text);min-height:100vh;overflow-x:clip}
.wide{max-width:1180px;margin:0 auto;padding:20px 20px 48px}
#lang-zh:checked~main [lang=en],#lang-en:checked~main [lang=zh]{display:none}
.bar{display:flex;flex-wrap:wrap;gap:8px 20px;justify-content:flex-end;font-size:13px;color:var(--muted)}
.bar label{cursor:pointer;padding:2px 8px;border-radius:4px}
#lang-en:checked~main label[for=lang-en],#lang-zh:checked~main label[for=lang-zh],#theme-auto:checked~main label[for=theme-auto],
#theme-light:checked~main label[for=theme-light],#theme-dark:checked~main label[for=theme-dark]{color:var(--text);background:var(--grid)}
#lang-en:focus-visible~main label[for=lang-en],#lang-zh:focus-visible~main label[for=lang-zh],
#theme-auto:focus-visible~main label[for=theme-auto],#theme-light:focus-visible~main label[for=theme-light],
#theme-dark:focus-visible~main label[for=theme-dark]{outline:2px solid var(--accent)}
h1{font-size:26px;line-height:1.25;margin:4px 0 2px;font-weight:650;overflow-wrap:anywhere}
h2{font-size:20px;margin:40px 0 12px;padding-top:10px;border-top:2px solid var(--accent);font-weight:650}
h3{font-size:15px;margin:0 0 8px;font-weight:600}
h4{font-size:13px;margin:0 0 6px;font-weight:600;color:var(--muted)}
a{color:var(--accent)}
.kicker{color:var(--accent);font-size:13px;font-weight:600;letter-spacing:.04em;margin:0}
.sub{color:var(--muted);margin:0 0 14px;overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin:16px 0 0;font-size:14px}
nav a{text-decoration:none}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:8px 24px;margin:14px 0;font-size:13.5px}
.facts div{min-width:0;overflow-wrap:anywhere}
.facts dt{color:var(--muted);font-size:12px}
.facts dd{margin:0}
.note{color:var(--muted);font-size:12.5px;line-height:1.45;margin:8px 0 0;overflow-wrap:anywhere}
.banner{border:1px solid var(--c2);border-left:6px solid var(--c2);background:var(--card);padding:10px 14px;margin:16px 0;border-radius:4px}
.banner b{color:var(--c2)}
.banner p{margin:2px 0}
.card,.plot{background:var(--card);border:1px solid var(--grid);border-radius:8px;padding:14px 16px;margin:0 0 18px;min-width:0}
.keys{display:grid;grid-template-columns:repeat(auto-fill,minmax(132px,1fr));gap:10px;margin:0 0 18px}
.key{background:var(--card);border:1px solid var(--grid);border-radius:8px;padding:9px 12px;min-width:0}
.key dt{color:var(--muted);font-size:12.5px;line-height:1.3}
.key dd{margin:2px 0 0;font-size:21px;font-weight:600;font-variant-numeric:tabular-nums;white-space:nowrap}
.key .over{color:var(--muted);font-size:11.5px;font-weight:400;line-height:1.3;white-space:normal;overflow-wrap:anywhere}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,430px),1fr));gap:18px;margin-bottom:18px}
.tables{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,430px),1fr));gap:18px}
.plots .plot,.tables .card{margin:0}
.tables .full{grid-column:1/-1}
.plot svg{display:block;width:100%;height:auto;stroke-linejoin:round}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12.5px;margin:6px 0 0;padding:0;list-style:none}
.legend li{display:flex;align-items:center;gap:6px;overflow-wrap:anywhere}
.legend i{flex:none;width:18px;height:0;border-top:3px solid}
.legend i.broken{border-top-style:dashed}
.legend i.box{height:10px;width:10px;border:0}
.scroll{overflow-x:auto;max-width:100%}
.tall{max-height:440px;overflow-y:auto}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--grid)}
thead th{font-weight:600;color:var(--muted);border-bottom:1px solid var(--line);vertical-align:bottom;position:sticky;top:0;
background:var(--card);white-space:normal;min-width:72px;line-height:1.3;z-index:1;word-break:keep-all}
tbody th.long{white-space:normal;min-width:132px}
.tight{font-size:12px}
.tight th,.tight td{padding:5px 4px}
.tight thead th{min-width:0;position:static}
.tight th.group{text-align:center}
.checks{margin:0 0 12px}
tbody th,th.head{font-weight:500;text-align:left}
tbody th:first-child{position:sticky;left:0;background:var(--card)}
thead th:first-child{left:0;z-index:2}
thead th.head{font-weight:600}
tbody tr:last-child th,tbody tr:last-child td{border-bottom:0}
td.text,th.text{text-align:left;white-space:normal;min-width:150px}
.none{color:var(--muted)}
.badge{display:inline-block;padding:1px 9px;border-radius:10px;font-size:12.5px;font-weight:600;border:1px solid var(--c3);color:var(--c3)}
.badge.unknown{border-color:var(--muted);color:var(--muted)}
.badge.bad{border-color:var(--c2);color:var(--card);background:var(--c2)}
footer{color:var(--muted);font-size:12.5px;margin-top:32px;border-top:1px solid var(--grid);padding-top:10px}
@media (max-width:600px){
.wide{padding:12px 10px 32px}.card,.plot{padding:11px 10px;border-radius:6px}
h1{font-size:22px}
.keys{grid-template-columns:repeat(auto-fill,minmax(104px,1fr));gap:8px}.key dd{font-size:18px}
.key .over{font-size:11px}.key{padding:8px 9px}
.facts{grid-template-columns:repeat(auto-fill,minmax(145px,1fr));gap:8px 14px}
td.text,th.text{min-width:250px}
}
@page{size:A4;margin:13mm 11mm}
@media print{
body{background:#fff;font-size:12px}
#theme-auto#theme-auto~main{LIGHT;--page:#fff;background:#fff;min-height:0;overflow:visible}
.bar,nav{display:none}
.wide{max-width:none;padding:0}
h2{break-after:avoid;margin-top:22px}h3,h4,thead{break-after:avoid}
.card{border:0;padding:0}
.plot,.keys,.banner,tr,.short{break-inside:avoid}
.plots,.tables{grid-template-columns:1fr 1fr;gap:10px}
.plot{padding:8px}
.keys{grid-template-columns:repeat(6,1fr);gap:6px}.key dd{font-size:15px}.key .over{font-size:9px}
.scroll,.tall{overflow:visible;max-height:none}
table{font-size:9px}.note,.legend{font-size:9.5px}.facts{font-size:11px}
th,td{padding:2px 4px}
thead{display:table-header-group}thead th{min-width:0}
thead th,tbody th:first-child{position:static}tbody th.long{min-width:0}
td.text,th.text{min-width:0}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
}
"""
SCRIPT = 'if(/^zh/i.test(navigator.language)){document.getElementById("lang-zh").checked=true;document.documentElement.lang="zh-CN"}'
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


class Voice:
    """Says things in one language, or in both, each marked with its own; markup shows one at a time."""

    def __init__(self, language: str):
        self.languages = LANGUAGES if language == "both" else (language,)

    def html(self, text: Any, tag: str = "span") -> str:
        """A word or sentence, escaped."""
        return self.pair(*both(str(text)), tag)

    def pair(self, english: str, chinese: str, tag: str = "span") -> str:
        """A text given in English and in Chinese."""
        said = {"en": english, "zh": chinese}
        if len(self.languages) == 1 or english == chinese:
            return escape(said[self.languages[0]])
        return "".join(f'<{tag} lang="{language}">{escape(said[language])}</{tag}>' for language in self.languages)

    def drawing(self, picture: str) -> str:
        """An SVG whose texts are said."""
        return re.sub(r"(<text\b[^>]*>)([^<]*)</text>", lambda match: f"{match[1]}{self.html(unescape(match[2]), 'tspan')}</text>", picture)


def document(title: str, body: str, language: str) -> str:
    """A page that needs nothing from outside, and by its content policy may not ask for anything."""
    light, dark = css_variables(LIGHT), css_variables(DARK)
    style = STYLE.strip().replace("DARK-PAGE", DARK["page"])
    style = style.replace("{LIGHT", "{color-scheme:light;" + light).replace("{DARK", "{color-scheme:dark;" + dark)
    first = "zh" if language == "zh" else "en"
    switches = [("lang", name, name == first) for name in LANGUAGES]
    switches += [("theme", name, name == "auto") for name in ("auto", "light", "dark")]
    inputs = "".join(f'<input class="switch" type="radio" name="{group}" id="{group}-{name}"{" checked" * on} aria-label="{group} {name}">'
                     for group, name, on in switches)
    return (f'<!DOCTYPE html>\n<html lang="{"zh-CN" if first == "zh" else "en"}">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
            f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n<style>\n{style}\n</style>\n</head>\n<body>\n{inputs}\n'
            + (f"<script>{SCRIPT}</script>\n" if language == "both" else "")
            + f'<main><div class="wide">\n{body}\n</div></main>\n</body>\n</html>\n')


def toolbar(voice: Voice) -> str:
    """Switches of language (where there are two) and colours."""
    labels = "".join(f'<label for="theme-{name}">{voice.html(name)}</label>' for name in ("auto", "light", "dark"))
    languages = '<span><label for="lang-en">English</label><label for="lang-zh">中文</label></span>' if len(voice.languages) > 1 else ""
    return f'<div class="bar">{languages}<span>{labels}</span></div>'


def table_html(frame: pd.DataFrame, voice: Voice, name: str = "") -> str:
    """A frame as a table in a box that scrolls sideways by itself; levels of the index come first, figures as `cells` writes them."""
    levels = [frame.index.get_level_values(level) for level in range(frame.index.nlevels)]
    titles = [str(title) if title is not None else "" for title in frame.index.names]
    texts = {column: frame[column].map(lambda value: isinstance(value, str) and len(value) > 14).any() for column in frame}
    head = "".join(f'<th class="head">{voice.html(title) if title else ""}</th>' for title in titles)
    head += "".join(f"<th{_class(texts[column])}>{voice.html(column)}</th>" for column in frame)
    rows = []
    for number, values in enumerate(frame.itertuples(index=False, name=None)):
        keys = [level[number] for level in levels]
        marks = "".join(f'<th scope="row"{_class(len(str(key)) > 16, "long")}>{_label(key, voice)}</th>' for key in keys)
        cells = "".join(f"<td{_class(texts[column])}>{_figure(value, kind_of(keys[-1], column, name), voice, name)}</td>"
                        for column, value in zip(frame, values))
        rows.append(f"<tr>{marks}{cells}</tr>")
    tall = " tall" if len(frame) > TALL else ""
    lines = "\n".join(rows)
    return f'<div class="scroll{tall}" tabindex="0"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'


def _class(is_so: bool, name: str = "text") -> str:
    return f' class="{name}"' if is_so else ""


def _label(key: Any, voice: Voice) -> str:
    return voice.html(cell(key, "other") if isinstance(key, pd.Timestamp) else key)


def _figure(value: Any, kind: str, voice: Voice, table: str) -> str:
    found = cell(value, kind)
    said = table != "facts" and (isinstance(value, str) or found in ("yes", "no"))             # facts are names that people gave
    return voice.html(found) if said else escape(found)


def card(title: str, body: str, note: str, voice: Voice, marks: str = "short full") -> str:
    """A titled box with what a convention says under it."""
    below = f'<p class="note">{voice.html(note)}</p>' if note else ""
    return f'<section class="card {marks}"><h3>{voice.html(title)}</h3>{body}{below}</section>'


def keys_html(figures: Sequence[tuple[str, str, str]], voice: Voice) -> str:
    """Key figures: name, figure as text, what it is over."""
    boxes = (f'<div class="key"><dt>{voice.html(name)}</dt><dd>{escape(figure)}</dd>'
             + (f'<dd class="over">{voice.html(over)}</dd>' if over else "") + "</div>" for name, figure, over in figures)
    return f'<dl class="keys">{"".join(boxes)}</dl>'
