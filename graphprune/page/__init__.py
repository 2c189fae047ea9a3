"""A page that shows a model's dependency graph: one HTML file that needs nothing else, no network either."""

from graphprune.page.content import Content as Content
from graphprune.page.content import content as content
from graphprune.page.html import write as write
