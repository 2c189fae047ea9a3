// The colors of numbers: one scale for the graph, the list of groups and the heat map, and one legend of it.

/** The style of an element in the color of a number. */
const shadeStyle = (shade) => ({
  "--shade": shade,
  "--on-shade": data.scale.dark.includes(shade) ? "#fff" : "#000",
});

/** The legend: the shades from the lowest to the highest number, and their meaning. */
function scaleLegend() {
  const { low, high, logarithmic, meaning, shades } = data.scale;
  return h(
    "div",
    { class: "legend scale" },
    h(
      "span",
      { class: "shades" },
      h("b", {}, logarithmic ? `≤ ${brief(low)}` : brief(low)),
      shades.map((shade) => h("i", { style: { background: shade } })),
      h("b", {}, brief(high)),
    ),
    h("span", {}, meaning + (logarithmic ? ", logarithmic" : "")),
  );
}
