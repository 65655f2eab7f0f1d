// Numbers as continual/report/text.py prints them.

const ABSENT = "–";
const INFINITE = "∞"; // measured, and never reached

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** At least three figures of `like`, without exponent: 0.0123, 1.23, 12345. */
function figures(value, like = value) {
  if (!isNumber(value) || !isNumber(like) || like === 0) return String(value);
  const decimals = Math.min(Math.max(0, 2 - Math.floor(Math.log10(Math.abs(like)))), 12);
  return value.toFixed(Number.isInteger(like) && Number.isInteger(value) ? 0 : decimals);
}

/** `value` in a metric's unit, with the decimals that suit `like`. */
function quantity(unit, value, like = value) {
  if (!isNumber(value)) return ABSENT;
  if (unit === "%") return (100 * value).toFixed(1);
  if (unit !== "B") return figures(value, like);
  const power = Math.abs(like) >= 1 ? Math.min(Math.floor(Math.log10(Math.abs(like)) / 3 + 1e-12), 4) : 0;
  return `${figures(value / 1000 ** power, like / 1000 ** power)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}

/** What stands beside the mean: ±half where the interval is symmetric, how far it reaches where it is not. */
function spread(unit, { mean, low, high, method }) {
  if (!isNumber(mean) || !isNumber(low) || !isNumber(high) || low === high) return "";
  const [below, above] = [mean - low, high - mean].map((half) => quantity(unit, half, mean).split(" ")[0]);
  if (unit !== "%" && Number(below) === 0 && Number(above) === 0) return "";
  return method.includes("Student") ? `±${above}` : `-${below} +${above}`;
}

function percent(value) {
  return isNumber(value) ? `${(100 * value).toFixed(1)}%` : ABSENT;
}

/** A difference of two percentages: +1.2 points. */
function points(value) {
  return isNumber(value) ? `${signed(100 * value, 1)} points` : ABSENT;
}

/** With its sign, but for what is rounded to 0. */
function signed(value, decimals) {
  const text = value.toFixed(decimals);
  return Number(text) === 0 ? text.replace("-", "") : `${value > 0 ? "+" : ""}${text}`;
}

function rows(value) {
  return Math.round(value).toLocaleString("en");
}

/** For an axis: 500, 1.5k, 2M. */
function thousands(value) {
  const [unit, sign] = Math.abs(value) >= 1e6 ? [1e6, "M"] : Math.abs(value) >= 1e3 ? [1e3, "k"] : [1, ""];
  return `${+(value / unit).toFixed(3)}${sign}`;
}

/** User text for a chart: one line, at most `length` characters, its writing direction kept to itself. */
function short(text, length = 18) {
  const characters = [...text.slice(0, 4 * length).replace(/[\p{Cc}\p{Bidi_Control}\u2028\u2029]/gu, " ")];
  const cut = characters.length > length || text.length > 4 * length;
  return `\u2068${cut ? characters.slice(0, length - 1).join("") + "…" : characters.join("")}\u2069`;
}

/** Comma-separated values; quotes are added where they are needed. */
function csv({ header, lines }) {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [header, ...lines].map((line) => line.map(cell).join(",") + "\n").join("");
}
