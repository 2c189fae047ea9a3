"""The page in a real browser: what is seen, clicked, typed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import PlanError
from graphprune.passes.depth.drop_blocks import drop
from graphprune.planning.plan import make
from graphprune.planning.sensitivity_table import Trial
from graphprune.reports.report import Report

Page = Any  # Playwright may be missing
CONTRAST = Path(__file__).with_name("contrast.js")
TABLES = Path(__file__).parents[2] / "tables.js"
LONG = "a_module_with_a_name_of_many_words_that_fills_a_column"
BROKEN = """() => [...document.querySelectorAll(".dotted")].flatMap((name) => {
    const walker = document.createTreeWalker(name, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
        const range = document.createRange();
        range.selectNodeContents(walker.currentNode);
        const lines = new Set([...range.getClientRects()].map((rect) => Math.round(rect.top)));
        if (lines.size > 1) found.push(walker.currentNode.data);
    }
    return found;
})"""
CLIPPED = """() => [...document.querySelectorAll("body *")].filter((element) => {
    const style = getComputedStyle(element);
    return element.checkVisibility() && (style.textOverflow === "ellipsis" || style.overflowX === "hidden")
        && element.scrollWidth > element.clientWidth + 1 && element.innerText;
}).map((element) => element.outerHTML.slice(0, 80))"""
COLOR = "(element) => getComputedStyle(element).backgroundColor"
SAME_NUMBERS = """() => [...document.querySelectorAll(".cell.shaded")].map((cell) => {
    const number = Number(cell.title.split(", ").at(-1)).toPrecision(2);
    const heat = [...document.querySelectorAll(`#heat td button[data-group="${cell.dataset.group}"]`)].find(
        (button) => Number(button.textContent).toPrecision(2) === number);
    return [cell.querySelector("i"), heat].map((element) => getComputedStyle(element).backgroundColor);
})"""


def seen(page: Page, selector: str) -> list[str]:
    """The texts of what is visible."""
    return [element.inner_text() for element in page.query_selector_all(selector) if element.is_visible()]


def boxes(page: Page) -> set[str]:
    """The names on all boxes of the graph that are closed."""
    return set(seen(page, "#canvas .box:not(.opened) .name"))


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def test_a_decoder_opens_on_its_blocks(decoder: gp.Program, opened: Any) -> None:
    page = opened(decoder)
    assert {"embed_tokens", "layers.0", "layers.1", "norm", "lm_head"} <= boxes(page)
    assert not {"self_attn", "q_proj"} & boxes(page)
    assert f"{decoder.count():,} parameters" in page.inner_text("#summary")


def test_a_network_opens_on_its_blocks(network: gp.Program, opened: Any) -> None:
    page = opened(network)
    assert {"stem", "head", "0", "1"} <= boxes(page) and "conv1" not in boxes(page)


def test_no_boxes_overlap_and_all_text_fits(decoder: gp.Program, plan: gp.Plan, opened: Any) -> None:
    page = opened(decoder, plan=plan)
    page.dblclick("[data-key] >> text=layers.0")
    page.dblclick("[data-key] >> text=self_attn")
    faults = page.evaluate("""() => [...document.querySelectorAll(".box.opened")].flatMap((outer) => {
        const inner = [...outer.children].filter((child) => child.classList.contains("box"));
        const cross = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
            && a.top < b.bottom - 1 && b.top < a.bottom - 1;
        const at = inner.map((box) => box.getBoundingClientRect());
        const frame = outer.getBoundingClientRect();
        return inner.filter((box, i) => at.some((other, j) => j < i && cross(at[i], other)) || at[i].right > frame.right
            || at[i].bottom > frame.bottom || box.scrollHeight > box.clientHeight + 1 && !box.matches(".opened"))
            .map((box) => box.innerText);
    })""")
    assert faults == []


def test_a_group_lights_up_all_that_it_touches(decoder: gp.Program, opened: Any) -> None:
    page = opened(decoder)
    group = next(g for g in gp.analyze(decoder).groups if "layers.1.mlp" in g.name)
    page.click(f"#groups [aria-label^='{group.name}']")
    assert seen(page, "#canvas .box.on:not(.opened) .name") == ["layers.1"]
    page.dblclick("[data-key] >> text=layers.1")
    page.dblclick("[data-key] >> text=mlp")
    page.click(f"#groups [aria-label^='{group.name}']")
    assert {"gate_proj", "up_proj", "down_proj", "mul"} <= set(seen(page, "#canvas .box.on:not(.opened) .name"))
    assert "self_attn" not in seen(page, "#canvas .box.on:not(.opened) .name")
    panel = page.inner_text("#detail")
    assert group.name in panel and "can be cut exactly" in panel and f"{group.cost.parameters} parameters" in panel
    for place in group.places:
        assert place.parameter in panel
    assert page.locator("#canvas .edge.on").count() > 0


def test_linked_groups_lead_to_each_other(decoder: gp.Program, opened: Any) -> None:
    page = opened(decoder)
    inner = next(group for group in gp.analyze(decoder).groups if group.linked)
    page.click(f"#groups [aria-label^='{inner.name}']")
    page.click(f"#detail dd .link >> text={inner.linked}")
    assert page.inner_text("#detail h2") == inner.linked
    assert inner.name in page.inner_text("#detail dl")
    page.go_back()
    assert page.inner_text("#detail h2") == inner.name


def test_a_parameter_shows_its_axes_to_scale(decoder: gp.Program, opened: Any) -> None:
    page = opened(decoder, at="#tensor=model.layers.0.self_attn.q_proj.weight")
    first = page.locator("#detail .dimension").first
    assert "32 = 2 x 4 x (2 | 2)" in first.inner_text()
    rows = [[band.bounding_box() for band in row.locator(".band").all()] for row in first.locator(".row").all()]
    assert [len(row) for row in rows] == [1, 2, 16]
    whole = rows[0][0]["width"]
    assert all(abs(band["width"] - whole / 2) < 1 for band in rows[1])
    assert all(abs(band["width"] - whole / 16) < 1 for band in rows[2])


def test_a_pinned_axis_says_why_with_the_line_of_the_model(decoder: gp.Program, opened: Any) -> None:
    page = opened(decoder, at="#tensor=model.embed_tokens.weight")
    page.click("#detail .part.pinned summary")  # it is open at first
    assert "a tensor indexes it" not in page.inner_text("#detail")
    page.click("#detail .band.pinned")
    told = page.inner_text("#detail")
    assert "because a tensor indexes it (embedding)" in told
    assert "self.embed_tokens(input_ids)" in told and "modeling_llama.py:" in told


def test_search_finds_by_parts_of_names(decoder: gp.Program, opened: Any) -> None:
    page = opened(decoder)
    press(page, "/")
    page.keyboard.type("1 down_proj weight")
    assert any("model.layers.1.mlp.down_proj.weight" in hit for hit in seen(page, "#hits li"))
    press(page, "ArrowDown", "ArrowUp", "Enter")
    assert "down_proj.weight" in page.inner_text("#detail h2")
    press(page, "/")
    page.fill("#search", "no such thing")
    assert seen(page, "#hits li") == ["No name matches."]


def test_all_of_it_works_by_keyboard(network: gp.Program, opened: Any) -> None:
    page = opened(network)
    focused = "document.activeElement.querySelector('.name')?.textContent"
    page.focus("#canvas [tabindex='0']")
    press(page, "ArrowDown")
    names = []
    for _ in range(12):
        press(page, "ArrowDown")
        names.append(page.evaluate(focused))
    assert names[-1] == "output" and {"0", "1", "head"} <= set(names)
    while page.evaluate(focused) != "head":
        press(page, "ArrowUp")
    press(page, " ")
    assert page.inner_text("#detail h2") == "head"
    press(page, "Enter")
    assert {"weight", "bias", "linear"} <= boxes(page)
    press(page, "Enter")
    assert "linear" not in boxes(page)
    press(page, "Escape")
    assert page.inner_text("#detail h2") == "the model"
    press(page, "?")
    assert "light or dark" in page.inner_text("dialog")
    press(page, "Escape")
    assert not page.is_visible("dialog")


def test_light_and_dark(network: gp.Program, opened: Any) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light, dark = (opened(network, theme=theme) for theme in ("light", "dark"))
    shades = light.evaluate(colour), dark.evaluate(colour)
    assert shades[0] != shades[1]
    press(light, "t")
    assert light.evaluate(colour) == shades[1]
    press(light, "t")
    assert light.evaluate(colour) == shades[0]


def test_text_is_readable_in_both(decoder: gp.Program, plan: gp.Plan, opened: Any) -> None:
    for theme in ("light", "dark"):
        page = opened(decoder, plan=plan, theme=theme)
        page.click("#groups .cell >> nth=1")
        found = page.evaluate(CONTRAST.read_text())
        assert found["texts"] > 50 and found["weak"] == []


def test_a_phone_shows_one_view_at_a_time(decoder: gp.Program, plan: gp.Plan, opened: Any) -> None:
    page = opened(decoder, plan=plan, wide=390)
    views = ("groups", "graph", "detail", "plan")
    for name in views:
        page.click(f"#tabs [data-tab={name}]")
        assert [view for view in views if page.is_visible(f"#{view}")] == [name]
        assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.click("#tabs [data-tab=groups]")
    page.click("#groups .pick >> nth=0")
    assert page.is_visible("#detail") and not page.is_visible("#groups")


@pytest.mark.parametrize("wide", [375, 1280])
def test_last_columns_can_be_reached(decoder: gp.Program, plan: gp.Plan, run: Path, opened: Any, wide: int) -> None:
    page = opened(decoder, plan=plan, reports=[run], sensitivity=measured(decoder), wide=wide)
    for view in ("plan", "runs", "heat"):
        page.click(f"#tabs [data-tab={view}]")
        found = page.evaluate(TABLES.read_text(encoding="utf-8"))
        assert found["tables"] >= 1 and found["faults"] == []
        hint, box = (page.locator(f"#{view} .{part}").first for part in ("hint", "scroll"))
        scrolls = box.evaluate("(box) => box.scrollWidth > box.clientWidth + 1")
        assert hint.is_visible() == scrolls and (scrolls or wide > 375), view
        if scrolls:
            assert hint.inner_text() == "more columns \u2192"
            box.evaluate("(box) => { box.scrollLeft = 1e5; }")
            page.wait_for_function("(hint) => hint.textContent === '\u2190 more columns'", arg=hint.element_handle())


def test_names_are_whole(opened: Any) -> None:
    page = opened(gp.trace(Named().eval(), (torch.randn(2, 4),)), wide=1280)
    page.click("#groups .pick")
    page.dblclick("#canvas [data-key] >> text=a_module")
    broken = page.evaluate(BROKEN)
    assert broken == []
    assert page.evaluate(CLIPPED) == []


def test_a_plan_is_shown_by_bars(decoder: gp.Program, plan: gp.Plan, opened: Any) -> None:
    page = opened(decoder, plan=plan)
    press(page, "2")
    small = gp.apply(decoder, plan).count()
    assert f"{decoder.count():,} → {small:,}" in page.inner_text("#plan")
    row = page.locator("#plan tbody tr", has_text="layers.0").first
    whole, rest = (row.locator(f".{part}").first.bounding_box()["width"] for part in ("whole", "rest"))
    count = {n: sum(s.numel() for k, s in p.module().named_parameters() if "layers.0." in k) for n, p in
             (("before", decoder), ("after", gp.apply(decoder, plan)))}  # fmt: skip
    assert abs(rest / whole - count["after"] / count["before"]) < 0.02
    page.click("#plan .barred >> nth=0")
    assert "the plan retains" in page.inner_text("#detail")


def test_dropped_blocks_are_named(decoder: gp.Program, opened: Any) -> None:
    without = drop(decoder, ("model.layers.1",))
    plan = make(without, gp.analyze(without), {})
    page = opened(decoder, plan=plan)
    assert "layers.1" not in boxes(page)
    page.click("#tabs [data-tab=plan]")
    told = page.inner_text("#plan")
    assert "Dropped blocks: model.layers.1." in told and f"{decoder.count():,} → {without.count():,}" in told


def test_a_model_of_which_nothing_can_be_cut_is_shown_too(opened: Any) -> None:
    page = opened(gp.trace(nn.Linear(3, 4), (torch.randn(2, 3),)))
    assert "0 groups" in page.inner_text("#groups") and "read why" in page.inner_text("#groups")
    page.click("#canvas .box.tensor >> nth=0")
    assert "it is an output" in page.inner_text("#detail")


def test_an_address_that_leads_nowhere_selects_nothing(network: gp.Program, opened: Any) -> None:
    for at in ("#group=no%20such", "#group=%E0%A4%A", "#toString=1"):
        assert opened(network, at=at).inner_text("#detail h2") == "the model"


def test_runs_stand_side_by_side(decoder: gp.Program, run: Path, tmp_path: Path, opened: Any) -> None:
    again = tmp_path / "again"
    again.mkdir()
    Report.load(run).save(again)
    page = opened(decoder, reports=[run, again])
    page.click("#tabs [data-tab=runs]")
    assert seen(page, "#runs tbody th") == ["by-magnitude", "again"]
    assert page.locator("#runs .charts figure").first.locator("polyline, .stay").count() == 2, "one for each run"
    assert page.locator("#runs .fans figure svg .fan").count() > 0
    assert page.locator("#runs .charts figure").count() > 0


def test_numbers_color_groups(network: gp.Program, opened: Any) -> None:
    names = [group.name for group in gp.analyze(network).groups]
    page = opened(network, sensitivity={name: i for i, name in enumerate(names)})
    colors = page.evaluate(
        "[...document.querySelectorAll('.cell.shaded i')].map((i) => getComputedStyle(i).backgroundColor)"
    )
    assert len(colors) == len(names) and len(set(colors)) > 3


class Named(nn.Module):
    """A network with a long name in it."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(LONG, nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.get_submodule(LONG)(x)
        return y


def measured(network: gp.Program) -> gp.Sensitivities:
    """Made up: a rise for every group and cut, but for the last group, which no linear layer reads."""
    names = [group.name for group in gp.analyze(network).groups]
    trials = [
        Trial(name, 8, width, 1 - width / 8, refitted, 1.0 + rise * 10.0**-i)
        for i, name in enumerate(names)
        for width, refitted, rise in ((6, False, 0.5), (6, True, -0.25), (4, False, 1.0), (4, True, 0.5))
        if not (refitted and name == names[-1])
    ]
    return gp.Sensitivities(network.fingerprint(), 1.0, "nats a token", "fasp", "least-squares", tuple(trials))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_sensitivities_make_a_heat_map(network: gp.Program, opened: Any, theme: str) -> None:
    table = measured(network)
    page = opened(network, sensitivity=table, theme=theme)
    page.click("#tabs [data-tab=heat]")
    cells = page.locator("#heat td button")
    assert cells.count() == len(table.trials)
    told = {cell.get_attribute("title"): cell for cell in cells.all()}
    name = next(iter(table.groups))
    assert told[f"{name}, 50% removed: +1"].inner_text() == "+1"
    assert told[f"{name}, 25% removed, refitted: -0.25"].inner_text() == "-0.25"
    colors = {cell.evaluate(COLOR) for cell in told.values()}
    assert len(colors) > 4
    same = page.evaluate(SAME_NUMBERS)
    assert len(same) == len(table.groups) and all(first == second for first, second in same)
    assert len(seen(page, "#heat .scale")) == 1
    legend = page.inner_text("#heat .scale")
    press(page, "1")
    assert page.inner_text("#groups .scale") == legend and "rise of the loss, nats a token" in legend
    press(page, "2")
    assert page.evaluate(CONTRAST.read_text())["weak"] == []
    told[f"{name}, 50% removed: +1"].click()
    assert page.inner_text("#detail h2") == name


def test_sensitivities_of_another_model_are_refused(network: gp.Program, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="measured on another model"):
        gp.view(network, output=tmp_path / "x.html", sensitivity=replace(measured(network), program="other"))
