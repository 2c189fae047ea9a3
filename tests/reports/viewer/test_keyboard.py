"""The keyboard: parts of the page by the Tab key, controls of a part by arrows."""

from typing import Any

import pytest

import graphprune as gp
from tests.reports.viewer.test_browser import Page, measured, press

PARTS = ("search", "tools", "tabs", "groups", "bar", "canvas", "plan", "heat", "detail")
PART = "(parts) => parts.find((part) => document.getElementById(part).contains(document.activeElement)) ?? ''"


def stops(page: Page, key: str, count: int) -> list[str]:
    """The parts that hold the focus, press by press."""
    found = []
    for _ in range(count):
        press(page, key)
        found.append(page.evaluate(PART, list(PARTS)))
    return found


def test_tab_goes_from_part_to_part(decoder: gp.Program, plan: gp.Plan, opened: Any) -> None:
    page = opened(decoder, plan=plan)
    page.click("#groups .pick >> nth=0")
    page.focus("#search")
    parts = ["tools", "tabs", "groups", "bar", "canvas", "detail"]
    assert stops(page, "Tab", 6) == parts
    assert stops(page, "Shift+Tab", 6) == [*reversed(parts[:-1]), "search"]
    press(page, "?")
    listed = page.inner_text("dialog")
    assert "Tab" in listed and "search, buttons, views, groups, graph, selection" in " ".join(listed.split())


def test_tab_reaches_the_graph_after_it_was_folded_and_drawn_anew(decoder: gp.Program, opened: Any) -> None:
    page = opened(decoder)
    page.dblclick("[data-key] >> text=layers.0")
    for button in ("fold", "shapes"):
        page.click(f"#{button}")
        assert page.locator("#canvas [tabindex='0']").count() == 1
        page.focus("#bar button >> nth=0")
        assert stops(page, "Tab", 1) == ["canvas"]


def test_arrows_move_inside_a_part(decoder: gp.Program, plan: gp.Plan, opened: Any) -> None:
    page = opened(decoder, plan=plan)
    label = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText"
    page.focus("#groups .pick")
    first = page.evaluate(label)
    press(page, "ArrowRight")
    assert page.evaluate("document.activeElement.matches('.kind:first-child .cell:first-child')")
    press(page, "ArrowDown", "ArrowUp", "Home")
    assert page.evaluate(label) == first
    press(page, "End", "Enter")
    assert page.evaluate("document.activeElement.dataset.group") is not None
    chosen = page.inner_text("#detail h2")
    assert page.evaluate(label).startswith(chosen)
    press(page, "Tab", "Shift+Tab")
    assert page.evaluate(label).startswith(chosen), "a part remembers its control"


@pytest.mark.parametrize("view", ["plan", "heat"])
def test_a_table_is_one_stop(network: gp.Program, opened: Any, view: str) -> None:
    page = opened(network, plan=gp.plan(network, ratio=0.5), sensitivity=measured(network))
    page.click(f"#tabs [data-tab={view}]")
    page.focus(f"#{view} [tabindex='0']")
    assert page.locator(f"#{view} button").count() > 5
    press(page, "ArrowDown")
    assert page.evaluate(PART, list(PARTS)) == view
    assert stops(page, "Shift+Tab", 1) == ["tabs"]


def test_the_focus_stays_in_the_panel_when_its_links_are_followed(decoder: gp.Program, opened: Any) -> None:
    page = opened(decoder)
    page.click("#groups .pick >> nth=1")
    page.focus("#detail .list .link")
    press(page, "Enter")
    assert page.evaluate(PART, list(PARTS)) == "detail"
    press(page, "Escape")
    assert page.evaluate(PART, list(PARTS)) == "detail" and page.inner_text("#detail h2") == "the model"
