"""Viewer of a model's dependency graph: one self-contained HTML file, which needs no network."""

from graphprune.reports.viewer.bundle import write as write
from graphprune.reports.viewer.content import Content as Content
from graphprune.reports.viewer.content import content as content
