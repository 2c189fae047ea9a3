"""The graph in a real browser: search, the tensors on its edges, and the picture that it is saved as."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import graphprune as gp
from tests.reports.viewer.test_browser import Page, boxes, press, seen

SVG = "{http://www.w3.org/2000/svg}"
LIT = "#canvas .box.on:not(.opened) .name"
LABELS = "#canvas .edges .label text"


def search(page: Page, words: str) -> None:
    press(page, "/")
    page.keyboard.type(words)
    press(page, "Enter")


def test_search_selects_a_group_and_lights_up_its_members(decoder: gp.Program, opened: Any) -> None:
    page = opened(decoder)
    search(page, "layers.1 gate_proj")
    (group,) = (g for g in gp.analyze(decoder).groups if "layers.1.mlp" in g.name)
    assert page.inner_text("#detail h2") == group.name
    assert {"gate_proj", "up_proj", "down_proj", "mul"} == set(seen(page, LIT)) - {"act_fn"}
    assert page.locator("#canvas .edge.on").count() > 2
    assert page.evaluate("document.activeElement.matches('.box.on')"), "arrows go on from there"
    view = page.locator("#view").bounding_box()
    box = page.locator("#canvas .box.on:not(.opened)").first.bounding_box()
    assert view["y"] <= box["y"] <= view["y"] + view["height"]


def test_search_knows_the_members_of_groups(decoder: gp.Program, opened: Any) -> None:
    page = opened(decoder)
    page.fill("#search", "layers.1.mlp up_proj")
    hits = [" ".join(hit.lower().split()) for hit in seen(page, "#hits li")]
    assert hits[0].startswith("module model.layers.1.mlp.up_proj")
    assert any(hit.startswith("group model.layers.1.mlp.gate_proj.weight:0") for hit in hits)


def test_search_lights_up_all_groups_of_a_kind(decoder: gp.Program, opened: Any) -> None:
    page = opened(decoder)
    search(page, "gate_proj")
    assert "kind of group" in page.inner_text("#detail").lower()
    assert seen(page, LIT) == ["layers.0", "layers.1"]


def test_search_from_another_view_leads_to_the_graph(decoder: gp.Program, plan: gp.Plan, opened: Any) -> None:
    page = opened(decoder, plan=plan)
    press(page, "2")
    search(page, "layers.0.mlp gate_proj")
    assert page.is_visible("#graph") and "down_proj" in seen(page, LIT)
    sizes = [box.bounding_box() for box in page.locator("#canvas .box").all()]
    assert all(box["width"] > 10 and box["height"] > 10 for box in sizes)


def test_search_on_a_phone_leads_to_the_group(decoder: gp.Program, opened: Any) -> None:
    page = opened(decoder, wide=375)
    page.fill("#search", "layers.1 gate_proj")
    press(page, "Enter")
    assert page.is_visible("#detail") and "layers.1.mlp" in page.inner_text("#detail h2")
    page.click("#detail .plain >> text=Show in the graph")
    assert {"gate_proj", "up_proj", "down_proj"} <= set(seen(page, LIT))


def labels(page: Page) -> list[str]:
    """The visible labels of edges."""
    return [label.text_content() for label in page.locator(LABELS).all() if label.is_visible()]


def types(program: gp.Program) -> set[str]:
    values = (node.meta["val"] for node in program.graph.nodes if hasattr(node.meta.get("val"), "dtype"))
    return {f"{str(v.dtype).removeprefix('torch.')}[{', '.join(map(str, v.shape))}]" for v in values}


def test_edges_carry_shapes_and_types(network: gp.Program, opened: Any) -> None:
    page = opened(network)
    page.dblclick("#canvas [data-key] >> text=head")
    titles = page.evaluate("[...document.querySelectorAll('#canvas .edge title')].map((title) => title.textContent)")
    assert any(title == "head.weight: float32[5, 8]" for title in titles)
    assert {line.split(": ")[1] for title in titles for line in title.splitlines()} <= types(network)
    press(page, "Escape")
    assert not labels(page)
    page.click("#canvas .box.tensor >> text=weight")
    assert labels(page) == ["float32[5, 8]"]
    press(page, "Escape", "s")
    assert len(labels(page)) == len(titles) and set(labels(page)) <= types(network)
    faults = page.evaluate("""() => {
        const places = (query) => [...document.querySelectorAll(query)].map((shape) => shape.getBoundingClientRect());
        const [rects, closed] = [places("#canvas .label rect"), places("#canvas .box:not(.opened)")];
        const cross = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
            && a.top < b.bottom - 1 && b.top < a.bottom - 1;
        return rects.filter((r, i) => rects.some((o, j) => j < i && cross(r, o)) || closed.some((b) => cross(r, b)));
    }""")
    assert faults == [], "labels lie on nothing"


def test_an_edge_leads_to_its_value(network: gp.Program, opened: Any) -> None:
    page = opened(network)
    page.dblclick("#canvas [data-key] >> text=head")
    press(page, "Escape")
    edge = page.locator("#canvas .edge", has=page.locator("title", has_text="head.weight")).locator(".catch")
    at = edge.evaluate("""(path) => {
        const { x, y } = path.getPointAtLength(3).matrixTransform(path.getScreenCTM());
        return [x, y];
    }""")
    page.mouse.move(*at)
    assert labels(page) == ["float32[5, 8]"]
    page.mouse.click(*at)
    assert page.inner_text("#detail h2") == "head.weight" and "float32[5, 8]" in page.inner_text("#detail dl")


def test_panels_list_the_shapes_of_values(network: gp.Program, opened: Any) -> None:
    page = opened(network, at="#module=head")
    (linear,) = (node for node in network.graph.nodes if "linear" in str(node.target))
    shape = ", ".join(map(str, linear.meta["val"].shape))
    text = page.inner_text("#detail")
    assert "inputs" in text and "outputs" in text and f"float32[{shape}]" in text
    page.click(f"#detail .link >> text={linear.name}")
    text = page.inner_text("#detail")
    assert f"float32[{shape}]" in text and "head.weight float32[5, 8]" in text


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_the_graph_is_saved_as_a_picture(
    decoder: gp.Program, plan: gp.Plan, opened: Any, browser: Any, tmp_path: Path, theme: str
) -> None:
    page = opened(decoder, plan=plan, theme=theme)
    search(page, "layers.1 gate_proj")
    press(page, "s")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "the-model.svg"
    download.value.save_as(tmp_path / "graph.svg")
    text = (tmp_path / "graph.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    words = {node.text for node in root.iter(f"{SVG}text")}
    assert boxes(page) <= words and set(labels(page)) <= words
    assert not any(word in text for word in ("foreignObject", "<style", "class=", "var(", "href", "script"))
    shown = browser.new_page(viewport={"width": 1000, "height": 1000})
    shown.goto((tmp_path / "graph.svg").as_uri())
    assert_same_places(shown, page)
    shown.close()


def assert_same_places(picture: Page, page: Page) -> None:
    """Texts of the picture have the places of those of the page, and none is outside its frame."""
    zoom = float(page.inner_text("#zoom").rstrip("%")) / 100
    origin = page.locator("#canvas").bounding_box()
    drawn = {text.text_content(): text.bounding_box() for text in picture.locator("text").all()}
    for word in ("mlp", "down_proj", "lm_head", "layers.0"):
        box = page.locator(f"#canvas .name >> text='{word}'").first.bounding_box()
        for axis in ("x", "y"):
            assert drawn[word][axis] == pytest.approx((box[axis] - origin[axis]) / zoom + 12, abs=4), word
    width, height = (float(picture.locator("svg").get_attribute(side)) for side in ("width", "height"))
    for box in drawn.values():
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert box["y"] >= 0 and box["y"] + box["height"] <= height
