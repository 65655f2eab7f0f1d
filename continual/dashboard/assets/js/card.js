// The frame of a panel: title, controls, what it draws, its data to read and to copy.
//
// A panel is {id, title, hint, size, has(scenario), controls(scope, pick), draw(scope, pick, width, set)}; draw gives
// {nodes, table: () => {header, lines}, remarks}. `pick` holds the user's choices, `set(name, value)` changes one.

function makeCard(panel, pick, redraw) {
  const title = h("h2", { id: `title-${panel.id}` }, panel.title);
  const hint = h("p", { class: "hint" }, panel.hint ?? "");
  const controls = h("div", { class: "controls" });
  const remarks = h("div", { class: "remarks" });
  const body = h("div", { class: "body" });
  const foot = makeFoot(() => card.table());
  const node = h(
    "section",
    { class: `card ${panel.size}`, data: { panel: panel.id }, "aria-labelledby": title.id },
    h("div", { class: "head" }, title, controls),
    hint,
    remarks,
    body,
    foot.node,
  );
  let shownControls = "";
  const set = (name, value) => {
    pick[name] = value;
    redraw(card);
  };
  const card = {
    panel,
    node,
    table: () => ({ header: [], lines: [] }),
    draw(scope) {
      const offered = panel.controls?.(scope, pick) ?? [];
      const specs = offered.filter((spec) => spec.check || spec.options.length > (spec.always ? 0 : 1));
      const chosen = settled(offered, pick);
      const signature = JSON.stringify([specs, chosen]);
      if (signature !== shownControls) refill(controls, ...specs.map((spec) => control(spec, chosen, set)));
      shownControls = signature;
      const view = panel.draw(scope, chosen, Math.max(280, body.clientWidth), set);
      card.table = view.table;
      refill(remarks, ...(view.remarks ?? []).map((text) => h("p", {}, text)));
      refill(
        body,
        ...(view.nodes.length ? view.nodes : [h("p", { class: "empty" }, "No row that is switched on has this.")]),
      );
      foot.update();
    },
    fail: () => refill(body, h("p", { class: "empty" }, "This could not be drawn; the browser's console says why.")),
  };
  return card;
}

function control(spec, chosen, set) {
  const change = (value) => set(spec.name, value);
  return (spec.check ? checkbox : select)({ ...spec, value: chosen[spec.name], change });
}

/** The user's choices where they are still offered, where they are not `first`, or the first of what is offered. */
function settled(specs, pick) {
  const value = ({ name, check, options, first }) => {
    const offered = (wanted) => options.find(([key]) => key === wanted);
    return check ? Boolean(pick[name]) : (offered(pick[name]) ?? offered(first) ?? options[0])?.[0];
  };
  return { ...pick, ...Object.fromEntries(specs.map((spec) => [spec.name, value(spec)])) };
}

function makeFoot(table) {
  const copied = h("span", { class: "copied", role: "status" });
  const fallback = h("textarea", {
    readonly: true,
    hidden: true,
    rows: 6,
    "aria-label": "data as CSV",
    data: { copied: "" },
  });
  const button = h("button", { type: "button", class: "small", data: { copy: "" } }, "copy data");
  button.addEventListener("click", async () => {
    const text = csv(table());
    try {
      await navigator.clipboard.writeText(text);
      copied.textContent = "copied as CSV";
    } catch {
      fallback.hidden = false;
      fallback.value = text;
      fallback.select();
      copied.textContent = "selected below: copy with Ctrl+C";
    }
  });
  const shown = h("div");
  const details = h("details", { class: "data" }, h("summary", {}, "data as a table"), shown);
  const update = () => refill(shown, ...(details.open ? [plainTable(table())] : []));
  details.addEventListener("toggle", update);
  return { node: h("div", { class: "foot" }, button, copied, details, fallback), update };
}
