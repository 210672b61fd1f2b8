"""The record that ends a workflow with its tear sheet and plots."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Sequence

from qlib.log import get_module_logger
from qlib.workflow.record_temp import RecordTemp

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.report.drawing import DARK, LIGHT
from qlib_ext.report.page import LANGUAGES
from qlib_ext.report.plots import named, png_files
from qlib_ext.report.saved import Artefacts, Saved, load
from qlib_ext.report.tearsheet import tear_sheet

logger = get_module_logger("qlib_ext.report")
SHEET, PLOTS = "tearsheet.html", "plots"
THEMES = {"light": LIGHT, "dark": DARK}


class TearSheetRecord(RecordTemp):
    """The reports of the recorder as one page, ``tearsheet.html``, and their plots as ``plots/<report>/<plot>.png``; the last record.

    Args:
        language: ``en``, ``zh``, or ``both`` with a switch. png: whether to save the plots too. theme: of the plots, light or dark.
        model, dataset: offered by Qlib's trainer, not used.

    Raises:
        ConfigError: an unknown keyword, language or theme. DataError: the recorder has no report.
    """

    def __init__(self, recorder, model=None, dataset=None, language: str = "both", png: bool = True, theme: str = "light", **unknown):
        if unknown:
            raise ConfigError(f"TearSheetRecord does not take {sorted(unknown)}; valid keywords: ['language', 'png', 'theme']")
        if language not in (*LANGUAGES, "both") or theme not in THEMES:
            raise ConfigError(f"language={language!r} must be one of {[*LANGUAGES, 'both']}, theme={theme!r} one of {list(THEMES)}")
        super().__init__(recorder)
        self.language, self.png, self.theme = language, png, THEMES[theme]

    def generate(self, **kwargs) -> str:
        """Make and save page and plots; the page."""
        reports = saved_reports(Artefacts(self.recorder))
        page = tear_sheet(reports, self.language)
        with tempfile.TemporaryDirectory() as made:
            Path(made, SHEET).write_text(page, encoding="utf-8")
            self.recorder.save_objects(local_path=str(Path(made, SHEET)))
            if self.png and write_plots(reports, Path(made, PLOTS), self.theme):
                self.recorder.save_objects(local_path=str(Path(made, PLOTS)), artifact_path=PLOTS)
        logger.info("tear sheet: %s of recorder %s (%.1f MB)", SHEET, self.recorder.id, len(page.encode()) / 1e6)
        return page

    def list(self) -> list[str]:
        """Names of what is saved."""
        return [SHEET]


def saved_reports(artefacts: Any) -> list[Saved]:
    """All reports of a run.

    Raises:
        DataError: it has none, or one of them is damaged.
    """
    folders = artefacts.reports()
    if not folders:
        raise DataError(f"recorder {artefacts.run_id} has no report: run FactorReportRecord, PortfolioReportRecord or LeakCheckRecord on "
                        "it, or put them before TearSheetRecord in the workflow")
    return [load(artefacts, folder) for folder in folders]


def write_plots(reports: Sequence[Saved], folder: Path, theme=LIGHT) -> list[Path]:
    """Plots of the reports as PNG files in a folder for each report; their paths."""
    written = []
    for report in map(named, reports):
        for name, content in png_files(report.kind, report.tables, theme).items():
            path = folder / (report.folder or report.kind) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            written.append(path)
    return written
