"""A page that shows a model's dependency graph: one HTML file that needs nothing else, no network either."""

from graphprune.reports.viewer.bundle import write as write
from graphprune.reports.viewer.content import Content as Content
from graphprune.reports.viewer.content import content as content
