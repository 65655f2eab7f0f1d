// A table that sorts by a click or by the keyboard; infinite values (null) stand last in both directions, absent ones behind them.

/**
 * @param columns [{key, title, left, value(item), cell(item), better}]
 * @param sort [key, 1 | -1]
 */
function sortedTable({ columns, items, sort, onSort, line = () => ({}), caption }) {
  const [key, direction] = sort;
  const by = columns.find((column) => column.key === key) ?? columns[0];
  const head = columns.map((column) => heading(column, column === by ? direction : 0, onSort));
  const body = ordered(items, by, direction).map((item) =>
    h("tr", line(item), ...columns.map((column, at) => tableCell(column, item, at === 0))),
  );
  const table = h(
    "table",
    {},
    h("caption", { class: "hidden" }, caption),
    h("thead", {}, h("tr", {}, ...head)),
    h("tbody", {}, ...body),
  );
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, table);
}

function heading(column, direction, onSort) {
  const sign = direction > 0 ? " ▲" : direction < 0 ? " ▼" : "";
  const first = column.better ?? (column.left ? -1 : 1);
  const next = direction ? -direction : first > 0 ? -1 : 1;
  const button = h("button", {
    type: "button",
    data: { focus: column.key },
    on: { click: () => onSort([column.key, next]) },
  });
  button.append(column.title, h("span", { class: "sign", "aria-hidden": "true" }, sign));
  const sorted = direction > 0 ? "ascending" : direction < 0 ? "descending" : "none";
  return h(
    "th",
    { scope: "col", class: column.left ? "left" : null, "aria-sort": sorted, data: { metric: column.key } },
    button,
  );
}

function tableCell(column, item, first) {
  const options = { class: column.left ? "left" : null, data: { metric: column.key } };
  return first ? h("th", { scope: "row", ...options }, column.cell(item)) : h("td", options, column.cell(item));
}

function ordered(items, column, direction) {
  const keyed = items.map((item, at) => ({ item, at, value: column.value(item) }));
  const last = (value) => (value === undefined ? 2 : value === null ? 1 : 0);
  keyed.sort((a, b) => {
    if (last(a.value) || last(b.value)) return last(a.value) - last(b.value) || a.at - b.at;
    const order = typeof a.value === "string" ? a.value.localeCompare(b.value, "en") : a.value - b.value;
    return direction * order || a.at - b.at;
  });
  return keyed.map(({ item }) => item);
}

/** A tidy table as plain cells, for reading; long ones end early and say so. */
function plainTable({ header, lines }, most = 500) {
  const written = (value) => (value === null || value === undefined ? ABSENT : String(value));
  const body = lines.slice(0, most).map((line) => h("tr", {}, ...line.map((value) => h("td", {}, written(value)))));
  const table = h(
    "table",
    {},
    h("thead", {}, h("tr", {}, ...header.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, ...body),
  );
  const rest =
    lines.length > most ? h("p", {}, `The first ${most} of ${lines.length} lines; copying takes all.`) : null;
  return h(
    "div",
    { class: "scroll plain", tabindex: 0, role: "region", "aria-label": "data" },
    table,
    ...(rest ? [rest] : []),
  );
}
