// Finds groups, tensors, modules and operators by parts of their names.

const entries = [
  ...kinds.flatMap((members, id) =>
    members.length > 1
      ? [{ type: "kind", id, name: members[0].kind, note: `${members.length} groups of ${members[0].size}` }]
      : [],
  ),
  ...groups.map((group) => ({ type: "group", id: group.id, name: group.name, note: `group of ${group.size}` })),
  ...tensors.map((tensor) => ({ type: "tensor", id: tensor.id, name: tensor.name, note: tensor.shape })),
  ...modules
    .filter((module) => module.path && !module.apart)
    .map((module) => ({ type: "module", id: module.id, name: module.path, note: module.class })),
  ...calls.map((call) => ({ type: "call", id: call.id, name: call.name, note: call.operator })),
].map((entry) => ({ ...entry, text: `${entry.name} ${entry.note}`.toLowerCase() }));

const SHOWN = 40;
let chosen = 0;

/** What has all words of a question in it: first that of which they are whole parts, then the shortest names. */
function search(question) {
  const words = question.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  const found = entries.filter((entry) => words.every((word) => entry.text.includes(word)));
  const misses = new Map(
    found.map((entry) => {
      const parts = new Set(entry.text.split(/[^a-z0-9_]+/));
      return [entry, words.filter((word) => !parts.has(word)).length];
    }),
  );
  return found.sort((a, b) => misses.get(a) - misses.get(b) || a.name.length - b.name.length).slice(0, SHOWN);
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
  if (nothing) byId("hits").append(h("li", { class: "nothing" }, "nothing has such a name"));
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
  if (type === "tensor" || type === "call" || type === "module") goTo({ type, id });
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
