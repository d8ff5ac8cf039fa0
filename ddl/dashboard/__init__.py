"""The dashboard: one page in a browser that shows runs while they train and afterwards, from their files alone.

static/ holds the page and the chart library it uses: uPlot 1.6.32 (MIT, uPlot.LICENSE)."""

from ddl.dashboard.server import Dashboard

__all__ = ["Dashboard"]
