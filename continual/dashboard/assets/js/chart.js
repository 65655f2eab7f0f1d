// One Observable Plot chart that obeys the page's policy: no style element, a role and a sentence for who cannot see it.

const TIP = { lineWidth: 60, lineHeight: 1.3, fontSize: 12, textPadding: 9, maxRadius: 60 };
const HALO = { stroke: "var(--card)", strokeWidth: 4 }; // text that stays readable on a line

function chart(says, options) {
  const drawn = Plot.plot({ className: "plot", style: { fontSize: "12px" }, marginLeft: 52, ...options });
  drawn.querySelectorAll("style").forEach((element) => element.remove()); // its rules are in page.css
  drawn.setAttribute("role", "img");
  drawn.setAttribute("aria-label", says);
  return drawn;
}

/** Shows `text(datum)` for the datum nearest to the pointer. */
function hover(data, x, y, text) {
  return Plot.tip(data, Plot.pointer({ x, y, title: text, ...TIP }));
}

/** What a point of a curve says: mean, interval and how many seeds. */
function told(unit, { y, low, high, n }) {
  const range = isNumber(low) && isNumber(high) && low !== high ? `, 95% interval ${unit(low)} to ${unit(high)}` : "";
  return `${unit(y)}${range}\n${n === 1 ? "1 seed: no interval" : `${n} seeds`}`;
}

/** A row's curve as objects, one per point. */
function curvePoints(row, curve) {
  const { colour } = look(row);
  return curve.x.map((x, at) => ({
    row,
    colour,
    x,
    y: curve.mean[at],
    low: curve.low[at],
    high: curve.high[at],
    n: curve.n[at],
  }));
}

/** The smallest range that holds all means and intervals, widened by a twentieth. */
function extent(data, { zero = false, within = [-Infinity, Infinity] } = {}) {
  const values = data.flatMap(({ y, low, high }) => [y, low, high]).filter(isNumber);
  if (zero) values.push(0);
  let [low, high] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  if (low > high) [low, high] = [0, 1];
  const pad = (high - low) / 20 || 0.05;
  return [Math.max(low - pad, within[0]), Math.min(high + pad, within[1])];
}

/** Values pushed apart to at least `gap`, in their order, staying near where they were and above `lowest`. */
function spaced(values, gap, lowest) {
  const order = values.map((_, at) => at).sort((a, b) => values[a] - values[b]);
  const moved = [...values];
  for (let at = 1; at < order.length; at++) {
    moved[order[at]] = Math.max(moved[order[at]], moved[order[at - 1]] + gap);
  }
  const shift = order.reduce((sum, at) => sum + moved[at] - values[at], 0) / (order.length || 1);
  const lift = Math.max(0, lowest - Math.min(...moved) + shift);
  return moved.map((value) => value - shift + lift);
}

/** Sentences for the text alternative: the first eight rows' numbers. */
function sentences(entries, text) {
  const some = entries.slice(0, 8).map(({ row, ...rest }) => `${named(row)} ${text({ row, ...rest })}`);
  return `${entries.length} ${entries.length === 1 ? "row" : "rows"}. ${some.join("; ")}${entries.length > 8 ? "; …" : "."}`;
}
