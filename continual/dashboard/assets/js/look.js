// How a row looks, the same in every panel: colour, symbol and dash from its number, so that none rests on colour alone.

const COLOURS = 8;
const SYMBOLS = [
  Plot.symbolCircle,
  Plot.symbolSquare,
  Plot.symbolTriangle,
  Plot.symbolDiamond,
  Plot.symbolStar,
  Plot.symbolCross,
  Plot.symbolWye,
];
const DASHES = ["none", "8 2 2 2", "2 2", "12 3"];
const UNFINISHED = "5 4";
const ROLES = {
  floor: ["floor", "closed-form learner: one pass, no gradient; what a method should beat"],
  bound: ["upper bound", "trains on all data at once; not a continual learner"],
};

function look({ colour, provisional }) {
  return {
    colour: `var(--row-${colour % COLOURS})`,
    text: `color-mix(in srgb, var(--row-${colour % COLOURS}) 60%, var(--ink))`, // dark or bright enough to be read
    symbol: SYMBOLS[colour % SYMBOLS.length],
    dash: provisional ? UNFINISHED : DASHES[Math.floor(colour / COLOURS) % DASHES.length],
  };
}

/** Whether the row may be the best one: finished, and bound to what a continual learner may do. */
function competes({ role, provisional }) {
  return role !== "bound" && !provisional;
}

/** The row to begin with: the first finished one that a floor or bound is not. */
function firstRow(able) {
  return able.find((row) => !row.provisional && !row.role) ?? able.find((row) => !row.provisional) ?? able[0];
}

/** A row's name in a chart, with the word that says it is not finished. */
function named(row, length = 18) {
  return short(row.label, length) + (row.provisional ? " (unfinished)" : "");
}

/** A piece of the row's line with its symbol. */
function swatch(row) {
  const { colour, symbol, dash } = look(row);
  return svg(
    "svg",
    { class: "swatch", viewBox: "0 0 26 12", width: 26, height: 12, "aria-hidden": "true" },
    svg("path", { d: "M0,6H26", stroke: colour, "stroke-width": 2, "stroke-dasharray": dash }),
    svg("path", { d: Plot.symbolPath(symbol, 46)(), transform: "translate(13,6)", fill: colour }),
  );
}

/** The words that must stand beside a row's name: floor, upper bound, unfinished. */
function badges(row) {
  const role = ROLES[row.role];
  return [
    role ? h("span", { class: "badge", title: role[1], data: { role: row.role } }, role[0]) : null,
    row.provisional ? h("span", { class: "badge", title: "no run of this row has finished" }, "unfinished") : null,
  ];
}

/** The row as it stands in a table. */
function rowName(row) {
  return h("span", { class: "row-name" }, swatch(row), userText(row.label), ...badges(row));
}
