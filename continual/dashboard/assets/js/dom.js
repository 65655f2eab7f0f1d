// Elements are made here and nowhere from text, so what a user named cannot become markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element; in `options`, `style`, `data` and `on` are objects, everything else is an attribute. */
function h(name, options = {}, ...children) {
  return filled(document.createElement(name), options, children);
}

function svg(name, options = {}, ...children) {
  return filled(document.createElementNS(SVG, name), options, children);
}

function filled(element, { style = {}, data = {}, on = {}, ...attributes }, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false)
      element.setAttribute(key, value === true ? "" : value);
  }
  for (const [key, value] of Object.entries(style)) element.style.setProperty(key, value); // an attribute would be blocked
  for (const [key, value] of Object.entries(data)) if (value !== undefined) element.dataset[key] = value;
  for (const [key, listener] of Object.entries(on)) element.addEventListener(key, listener);
  element.append(...present(children));
  return element;
}

function present(children) {
  return children.filter((child) => child !== null && child !== undefined);
}

/** User text in a line of its own direction; all of it on hover where it is cut. */
function userText(text, className = "user") {
  return h("bdi", { class: className, title: text.length > 24 ? text.slice(0, 2000) : null }, text);
}

/** Replaces what is in `host`, keeping keyboard focus and the scroll of wide tables where they were. */
function refill(host, ...children) {
  const focus = host.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
  const scrolled = [...host.querySelectorAll(".scroll")].map((element) => [element.scrollLeft, element.scrollTop]);
  host.replaceChildren(...present(children));
  host.querySelectorAll(".scroll").forEach((element, at) => {
    if (scrolled[at]?.some(Boolean)) [element.scrollLeft, element.scrollTop] = scrolled[at];
  });
  if (focus) [...host.querySelectorAll("[data-focus]")].find((element) => element.dataset.focus === focus)?.focus();
}

/** A labelled select; `options` are [value, text] pairs. */
function select({ name, label, options, value, change }) {
  const items = options.map(([key, text]) => h("option", { value: key, selected: key === value }, text));
  const box = h("select", { data: { control: name, focus: name }, on: { change: () => change(box.value) } }, ...items);
  return h("label", { class: "control" }, h("span", {}, label), box);
}

function checkbox({ name, label, value, change }) {
  const box = h("input", {
    type: "checkbox",
    data: { control: name, focus: name },
    on: { change: () => change(box.checked) },
  });
  box.checked = value;
  return h("label", { class: "control" }, box, h("span", {}, label));
}
