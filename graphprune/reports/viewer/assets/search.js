// Search for groups, tensors, modules and operators by parts of their names; of groups, by those of their members, too.

const entries = [
  ...kinds.flatMap((members, id) =>
    members.length > 1
      ? [{ type: "kind", id, name: members[0].kind, note: `${members.length} × ${members[0].size} ${groupLabel(members[0])}` }]
      : [],
  ),
  ...groups.map((group) => ({ type: "group", id: group.id, name: group.name, note: `${group.size} ${groupLabel(group)}` })),
  ...tensors.map((tensor) => ({ type: "tensor", id: tensor.id, name: tensor.name, note: tensor.shape })),
  ...modules
    .filter((module) => module.path && !module.apart)
    .map((module) => ({ type: "module", id: module.id, name: module.path, note: module.class })),
  ...calls.map((call) => ({ type: "call", id: call.id, name: call.name, note: call.operator })),
].map((entry) => ({ ...entry, text: `${entry.name} ${entry.note}`.toLowerCase(), members: membersOf(entry) }));

/** The names of the tensors of a group, or of all groups of a kind. */
function membersOf({ type, id }) {
  const members = { group: () => [groups[id]], kind: () => kinds[id] }[type]?.() ?? [];
  const names = members.flatMap((group) => group.tensors.map((tensor) => tensors[tensor].name));
  return [...new Set(names)].join(" ").toLowerCase();
}

const SHOWN = 40;
const ORDER = ["kind", "group", "module", "tensor", "call"];
let chosen = 0;

/** How far an entry is from the words: words only in members, parts of words, its type, the length of its name. */
function distance(entry, words) {
  const isWhole = (word) => new RegExp(`(?<!\\w)${word.replace(/\W/g, "\\$&")}(?!\\w)`).test(entry.text);
  return [
    words.filter((word) => !entry.text.includes(word)).length,
    words.filter((word) => !isWhole(word)).length,
    ORDER.indexOf(entry.type),
    entry.name.length,
  ];
}

/** The entries that have all words, the nearest first: groups before the tensors and modules of the same name. */
function search(question) {
  const words = question.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  return entries
    .filter(({ text, members }) => words.every((word) => text.includes(word) || members.includes(word)))
    .map((entry) => ({ entry, far: distance(entry, words) }))
    .sort((a, b) => a.far.reduce((order, value, i) => order || value - b.far[i], 0))
    .slice(0, SHOWN)
    .map(({ entry }) => entry);
}

function showHits() {
  const hits = search(byId("search").value);
  chosen = 0;
  byId("hits").replaceChildren(
    ...hits.map((hit, i) =>
      h(
        "li",
        { role: "option", id: `hit${i}`, click: () => take(hit) },
        h(
          "small",
          { class: "what" },
          { kind: "kind", group: "group", tensor: "tensor", module: "module", call: "operator" }[hit.type],
        ),
        h("span", {}, broken(hit.name)),
        h("small", {}, hit.note),
      ),
    ),
  );
  const nothing = !hits.length && byId("search").value.trim();
  if (nothing) byId("hits").append(h("li", { class: "nothing" }, "No name matches."));
  byId("hits").hidden = !hits.length && !nothing;
  byId("search").setAttribute("aria-expanded", String(!byId("hits").hidden));
  mark();
}

function mark() {
  const options = [...byId("hits").querySelectorAll("[role=option]")];
  options.forEach((option, i) => option.setAttribute("aria-selected", String(i === chosen)));
  options[chosen]?.scrollIntoView({ block: "nearest" });
  if (options[chosen]) byId("search").setAttribute("aria-activedescendant", options[chosen].id);
  else byId("search").removeAttribute("aria-activedescendant");
}

function take({ type, id }) {
  byId("hits").hidden = true;
  byId("search").setAttribute("aria-expanded", "false");
  byId("search").blur();
  select({ type, id });
  goTo({ type, id });
  if (isNarrow()) showTab("detail");
}

function startSearch() {
  const input = byId("search");
  input.addEventListener("input", showHits);
  input.addEventListener("focus", showHits);
  input.addEventListener("blur", () =>
    setTimeout(() => {
      if (document.activeElement !== input) byId("hits").hidden = true; // a click on a hit comes before
    }, 150),
  );
  input.addEventListener("keydown", (event) => {
    const hits = search(input.value);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && hits.length) {
      chosen = (chosen + step + hits.length) % hits.length;
      mark();
    } else if (event.key === "Enter" && hits[chosen]) take(hits[chosen]);
    else if (event.key === "Escape") {
      input.value = "";
      showHits();
      input.blur();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
}
