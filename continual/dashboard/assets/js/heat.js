// A heat map: one cell per (line, column), its scale beside it.

const ACCURACY = { type: "linear", scheme: "viridis", domain: [0, 1] };

/** White in the middle, red for losses, blue for gains, the same length on both sides. */
function diverging(values) {
  const most = values.filter(isNumber).reduce((a, value) => Math.max(a, Math.abs(value)), 0) || 0.01;
  return { type: "diverging", scheme: "RdBu", domain: [-most, most], pivot: 0, clamp: true };
}

/**
 * @param cells [{key, x, y, value, text}], x and y counting columns and lines from 0
 * @param options.reached how many columns of each line lie left of the outline, if there is one
 */
function heat(says, cells, width, { columns, lines, scale, label, x, reached, unit, tallest }) {
  const left = 20 + 6.6 * Math.min(14, Math.max(...lines.map((text) => text.length)));
  const cellWidth = (width - left - 12) / columns.length;
  const height = 56 + Math.round(lines.length * Math.max(6, Math.min(cellWidth, tallest / lines.length)));
  const cellHeight = (height - 56) / lines.length;
  const shown = cells.filter((cell) => isNumber(cell.value));
  const drawn = chart(says, {
    width,
    height,
    marginLeft: left,
    marginTop: 12,
    marginBottom: 44,
    marginRight: 12,
    x: {
      label: x,
      labelAnchor: "center",
      labelArrow: "none",
      domain: [-0.5, columns.length - 0.5],
      ...ticks(columns, cellWidth, 30),
    },
    y: { label: null, domain: [lines.length - 0.5, -0.5], ...ticks(lines, cellHeight, 15) },
    color: scale,
    marks: [
      Plot.frame({ fill: "var(--absent)", stroke: null }),
      Plot.rect(shown, {
        x1: (cell) => cell.x - 0.5,
        x2: (cell) => cell.x + 0.5,
        y1: (cell) => cell.y - 0.5,
        y2: (cell) => cell.y + 0.5,
        fill: "value",
        inset: Math.min(cellWidth, cellHeight) > 14 ? 0.5 : 0,
        shapeRendering: "crispEdges",
        ariaLabel: "key",
      }),
      cellWidth >= 27 && cellHeight >= 14
        ? Plot.text(shown, { x: "x", y: "y", text: label, fill: (cell) => ink(cell.value, scale), fontSize: 11 })
        : null,
      reached ? outline(reached) : null,
      hover(shown, "x", "y", (cell) => cell.text),
    ],
  });
  drawn.querySelectorAll("g[aria-label=rect] rect").forEach((element, at) => {
    element.removeAttribute("aria-label");
    element.dataset.cell = shown[at].key;
  });
  return h("div", { class: "heat" }, drawn, ramp(scale, unit));
}

function ticks(names, size, room) {
  const step = Math.max(1, Math.ceil(room / size));
  return {
    ticks: names.map((_, at) => at).filter((at) => at % step === 0),
    tickFormat: (at) => names[at],
    tickSize: 3,
  };
}

/** The border between columns that were reached and columns that were not, in two strokes, to be seen on any colour. */
function outline(reached) {
  const steps = reached
    .flatMap((count, at) => [
      [count - 0.5, at - 0.5],
      [count - 0.5, at + 0.5],
    ])
    .slice(reached[0] ? 0 : 1);
  return [
    Plot.line(steps, { stroke: "#000", strokeWidth: 4, strokeLinejoin: "miter" }),
    Plot.line(steps, { stroke: "#fff", strokeWidth: 2, strokeLinejoin: "miter" }),
  ];
}

function ink(value, { type, domain }) {
  if (type === "diverging") return Math.abs(value) > 0.6 * domain[1] ? "#fff" : "#111";
  return value > 0.6 ? "#111" : "#fff";
}

function ramp(scale, unit) {
  const [low, high] = scale.domain;
  const { apply } = Plot.scale({ color: scale });
  const steps = Array.from({ length: 40 }, (_, at) => low + ((high - low) * at) / 39);
  return h(
    "div",
    { class: "ramp", "aria-hidden": "true" },
    h("span", {}, unit(low)),
    h("span", { class: "ramp-steps" }, ...steps.map((value) => h("i", { style: { background: apply(value) } }))),
    h("span", {}, unit(high)),
    h("span", { class: "ramp-none" }, "not measured"),
  );
}
