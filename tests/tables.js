// Tables whose last column cannot be reached, and names in their cells that are broken in the middle.
() => {
  const tables = [...document.querySelectorAll("table")].filter((table) => table.checkVisibility());
  const scrolls = (element) =>
    ["auto", "scroll"].includes(getComputedStyle(element).overflowX) && element.scrollWidth > element.clientWidth;
  const around = (element) => (element ? [element, ...around(element.parentElement)] : []);
  const unreachable = tables.filter((table) => {
    const box = around(table).find((element) => scrolls(element)) ?? document.documentElement;
    const last = table.rows[0].cells[table.rows[0].cells.length - 1];
    box.scrollLeft = box.scrollWidth;
    const reached = last.getBoundingClientRect().right <= Math.min(innerWidth, box.getBoundingClientRect().right) + 1;
    box.scrollLeft = 0;
    return !reached;
  });
  const broken = (cell) => {
    const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
      for (const match of walker.currentNode.data.matchAll(/\S+/g)) {
        const range = document.createRange();
        range.setStart(walker.currentNode, match.index);
        range.setEnd(walker.currentNode, match.index + match[0].length);
        const lines = new Set([...range.getClientRects()].map((rect) => Math.round(rect.top)));
        if (lines.size > 1) found.push(`broken: ${match[0]}`);
      }
    }
    return found;
  };
  const cut = (cell) =>
    [cell, ...cell.querySelectorAll("*")].some(
      (element) => getComputedStyle(element).overflowX === "hidden" && element.scrollWidth > element.clientWidth + 1,
    );
  const cells = tables.flatMap((table) => [...table.querySelectorAll("th, td")]);
  const wide = document.documentElement.scrollWidth > innerWidth ? ["the page itself is too wide"] : [];
  return {
    tables: tables.length,
    faults: [
      ...wide,
      ...unreachable.map((table) => `unreachable: ${table.rows[0].innerText}`),
      ...cells.flatMap(broken),
      ...cells.filter(cut).map((cell) => `cut: ${cell.innerText}`),
    ],
  };
}
