// Views, keys, light and dark.

const NAMES = { groups: "Groups", graph: "Graph", detail: "Selected", plan: "Plan", runs: "Runs", heat: "Sensitivity" };
const given = { plan: data.plan, runs: data.runs.length, heat: data.heat };
const tabs = Object.keys(NAMES).filter((name) => !(name in given) || given[name]);
const narrow = matchMedia("(max-width: 899px)");
const isNarrow = () => narrow.matches;

/** Bring a view to the front. Where there is room, groups and the selection are at its sides. */
function showTab(name) {
  document.body.dataset.tab = name;
  if (name !== "groups" && name !== "detail") document.body.dataset.middle = name;
  document.querySelectorAll("#tabs button").forEach((button) => {
    const on = button.dataset.tab === (isNarrow() ? name : document.body.dataset.middle);
    button.setAttribute("aria-selected", String(on));
    button.tabIndex = on ? 0 : -1;
  });
}

const shownTabs = () => [...byId("tabs").children].filter((button) => button.offsetParent);

function makeTabs() {
  byId("tabs").append(
    ...tabs.map((name) =>
      h(
        "button",
        { type: "button", role: "tab", "data-tab": name, "aria-controls": name, click: () => showTab(name) },
        NAMES[name],
      ),
    ),
  );
  byId("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const shown = shownTabs();
    const next = shown[(shown.indexOf(event.target) + step + shown.length) % shown.length];
    if (!step || !next) return;
    next.focus();
    next.click();
  });
}

function makeHeader() {
  byId("title").append(broken(data.title));
  byId("summary").textContent =
    `${whole(data.total)} parameters · ${plural(groups.length, "group")} · ${plural(calls.length, "node")}`;
  const shares = data.freedoms.filter((freedom) => freedom.count);
  byId("freedom").append(
    ...shares.map((freedom) =>
      h("i", {
        class: FREEDOMS[freedom.name].css,
        title: `${percent(freedom.count / data.total)} ${freedom.description}`,
        style: { "flex-grow": freedom.count },
      }),
    ),
  );
  byId("freedom").setAttribute(
    "aria-label",
    shares.map((freedom) => `${percent(freedom.count / data.total)} of the parameters ${freedom.description}`).join("; "),
  );
}

const KEYS = [
  ["/", "search"],
  ["Tab", "next part of the page: search, buttons, views, groups, graph, selection; Shift+Tab: the part before"],
  ["arrows", "inside a part: the next control, row or box; Home and End: the first and the last control"],
  ["Enter", "in the graph: open or close a module; else press a button"],
  ["Space", "select a box"],
  ["Esc", "select nothing"],
  ["+ − f", "larger, smaller, fit the width"],
  ["0", "fold to blocks"],
  ["s", "shapes and types on all edges"],
  ["1 2 3 …", "views"],
  ["t", "light or dark"],
  ["?", "this list of keys"],
];

function makeKeys() {
  byId("keys").append(
    h("h2", {}, "Keys"),
    h(
      "table",
      {},
      h(
        "tbody",
        {},
        KEYS.map(([key, does]) => h("tr", {}, h("th", { scope: "row" }, h("kbd", {}, key)), h("td", {}, does))),
      ),
    ),
    h("form", { method: "dialog" }, h("button", { class: "plain" }, "Close")),
  );
  byId("help").addEventListener("click", () => byId("keys").showModal());
  byId("theme").addEventListener("click", toggleTheme);
}

const dark = () =>
  (document.documentElement.dataset.theme ??
    (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const toggleTheme = () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
};

const SHORTCUTS = {
  "/": () => byId("search").focus(),
  "?": () => byId("keys").showModal(),
  t: toggleTheme,
  Escape: () => select(null),
  "+": () => setScale(scale * 1.25),
  "=": () => setScale(scale * 1.25),
  "-": () => setScale(scale / 1.25),
  f: fit,
  0: () => byId("fold").click(),
  s: () => byId("shapes").click(),
  ...Object.fromEntries(tabs.map((_, i) => [i + 1, () => shownTabs()[i]?.click()])),
};

function globalKeys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea") || byId("keys").open)
    return;
  const act = SHORTCUTS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

const settleDetail = rove(byId("detail"), "button:not(.band), summary");
makeHeader();
makeTabs();
makeKeys();
rove(byId("tools"), "button");
rove(byId("bar"), "button");
showTab("graph"); // hidden boxes cannot be measured
startGraph();
startGroups();
startPlan();
startRuns();
startHeat();
startSearch();
state.listeners.push(showDetail, (thing) => {
  if (thing && isNarrow() && document.body.dataset.tab !== "graph") showTab("detail");
  if (thing && !isNarrow() && document.body.dataset.middle === "graph" && thing.type !== "kind") reachView(thing);
});
addEventListener("keydown", globalKeys);
addEventListener("popstate", selectFromAddress);
addEventListener("hashchange", selectFromAddress);
narrow.addEventListener("change", () => {
  showTab(document.body.dataset.tab);
  if (view.offsetParent) draw();
});
fit();
view.scrollTop = 0;
selectFromAddress();
if (state.selected && isNarrow()) showTab("detail");
document.documentElement.dataset.ready = "true";

/** Scroll to a thing unless it is visible already. */
function reachView(thing) {
  const box = boxFor(thing)?.getBoundingClientRect();
  const frame = view.getBoundingClientRect();
  if (box && (box.bottom < frame.top || box.top > frame.bottom || box.right < frame.left || box.left > frame.right))
    show(thing);
}
