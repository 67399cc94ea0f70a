// Making elements. Whatever is put into one is text: nothing here, or anywhere on this page, reads markup from a string.

/** The element of the page with this id. */
export const find = (id) => document.getElementById(id);

/**
 * A new element: element("button", {class: "quiet", onclick: act}, "Copy").
 * A property that begins with `on` listens; one that is null, undefined or false is left out.
 */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A share of one, in percent, short enough for a table. */
export function percent(share) {
  if (share === 0) return "0 %";
  if (share < 0.0005) return "<0.1 %";
  return `${(100 * share).toFixed(1)} %`;
}

/** A whole number with thin spaces between the thousands. */
export const whole = (number) => String(Math.round(number)).replace(/\B(?=(\d{3})+$)/g, "\u202f");

/** `1 token`, `2 tokens`. */
export const counted = (number, what) => `${whole(number)} ${what}${number === 1 ? "" : "s"}`;
