// The settings: how tokens are drawn, the system prompt.

import { element, find } from "./dom.js";
import { SAMPLING } from "./form.js";

const OWN = "own";
const LARGEST_SEED = 2 ** 32;

// name, label, from, to, step, what it does. The defaults and the styles come from the server.
const SLIDERS = [
  ["temperature", "Temperature", 0, 2, 0.05, "0 always takes the likeliest token; above 1 is wilder."],
  ["top_p", "Top-p", 0.01, 1, 0.01, "Keeps the fewest tokens that together reach this share; 1 keeps all."],
  ["top_k", "Top-k", 0, 200, 1, "Keeps this many of the likeliest tokens; 0 keeps all."],
  ["min_p", "Min-p", 0, 1, 0.01, "Keeps tokens at least this share as likely as the likeliest; 0 keeps all."],
  ["repetition_penalty", "Repetition penalty", 1, 2, 0.01, "Above 1, what the text already holds becomes less likely."],
];
const MORE = [
  ["typical_p", "Typical-p", 0.01, 1, 0.01, "Keeps the tokens of the most usual surprise; 1 keeps all."],
  ["presence_penalty", "Presence penalty", -2, 2, 0.05, "Taken from every token that was written."],
  ["frequency_penalty", "Frequency penalty", -2, 2, 0.05, "Taken each time that a token was written."],
];
const DRAWN = [...SLIDERS, ...MORE].map(([name]) => name);

export class Settings {
  /** Build the panel in `root`; `changed` is called after every change. `kept` are values of an earlier visit. */
  constructor(root, { defaults, styles, kept, changed, systemChanged }) {
    this.styles = styles;
    this.changed = changed;
    const start = Object.fromEntries(DRAWN.map((name) => [name, defaults[name]]));
    this.values = { ...start, max_tokens: defaults.max_new_tokens ?? 256, seed: null };
    this.start = start;
    for (const name of [...DRAWN, "max_tokens", "seed"]) {
      try {
        if (name in kept) this.values[name] = name === "seed" && kept.seed === null ? null : SAMPLING[name](kept[name], name);
      } catch {
        // A value that is no longer possible is left at its default.
      }
    }
    this.rows = new Map();
    this.style = element("select", { id: "style", onchange: () => this.#take(this.style.value) });
    this.style.append(...Object.keys(styles).map((name) => element("option", { value: name }, name)));
    this.own = element("option", { value: OWN }, "your own");
    this.style.append(this.own);
    this.system = element("textarea", {
      id: "system", rows: 4, dir: "auto", placeholder: "What the model is told before the conversation",
      oninput: () => systemChanged(this.system.value),
    });
    this.systemRow = element("div", { class: "setting" }, element("label", { for: "system" }, "System prompt"), this.system);
    this.most = this.#numberField("max_tokens", "Most tokens", "An answer ends here at the latest.", 1);
    this.seed = this.#numberField("seed", "Seed", "The same seed and prompt give the same answer; empty is another each time.", 0);
    root.replaceChildren(
      this.systemRow,
      element("div", { class: "setting" }, element("label", { for: "style" }, "Style"), this.style),
      ...SLIDERS.map((slider) => this.#slider(...slider)),
      element("div", { class: "pair" }, this.most, this.seed),
      element("details", {}, element("summary", {}, "More"), ...MORE.map((slider) => this.#slider(...slider))),
    );
    this.#show();
  }

  /** How the next answer is drawn; without a seed of one's own, each answer gets one, so that it can be had again. */
  sampling() {
    const seed = this.values.seed ?? crypto.getRandomValues(new Uint32Array(1))[0] % LARGEST_SEED;
    return { ...this.values, seed };
  }

  /** The settings in a few words. */
  summary() {
    const style = this.style.value === OWN ? [] : [this.style.value];
    const { temperature, top_p, top_k, min_p } = this.values;
    const filters = [top_p < 1 && `top-p ${top_p}`, top_k > 0 && `top-k ${top_k}`, min_p > 0 && `min-p ${min_p}`];
    return [...style, `temperature ${temperature}`, ...filters.filter(Boolean)].join(" · ");
  }

  /** Show the system prompt of a conversation, or none for a text that is continued. */
  showSystem(text) {
    this.systemRow.hidden = text === null;
    if (text !== null && this.system.value !== text) this.system.value = text;
  }

  #slider(name, label, low, high, step, what) {
    const output = element("output", { for: `set-${name}` });
    const input = element("input", {
      id: `set-${name}`, type: "range", min: low, max: high, step, "aria-describedby": `about-${name}`,
      oninput: () => this.#set(name, Number(input.value)),
    });
    this.rows.set(name, { input, output });
    return element(
      "div", { class: "setting" },
      element("div", { class: "setting-head" }, element("label", { for: `set-${name}` }, label), output),
      input,
      element("p", { class: "note", id: `about-${name}` }, what),
    );
  }

  #numberField(name, label, what, low) {
    const input = element("input", {
      id: `set-${name}`, type: "number", min: low, step: 1, inputmode: "numeric", "aria-describedby": `about-${name}`,
      placeholder: name === "seed" ? "random" : null,
      onchange: () => {
        const value = input.value === "" ? null : Number(input.value);
        try {
          this.#set(name, name === "seed" && value === null ? null : SAMPLING[name](value, label));
        } catch {
          this.#show(); // what cannot be is not taken
        }
      },
    });
    this.rows.set(name, { input });
    return element(
      "div", { class: "setting" },
      element("label", { for: `set-${name}` }, label), input, element("p", { class: "note", id: `about-${name}` }, what),
    );
  }

  #set(name, value) {
    this.values[name] = value;
    this.#show();
    this.changed();
  }

  #take(style) {
    Object.assign(this.values, this.start, this.styles[style]);
    this.#show();
    this.changed();
  }

  #show() {
    for (const [name, { input, output }] of this.rows) {
      const value = this.values[name];
      input.value = value ?? "";
      if (output) output.textContent = String(value);
    }
    const fits = ([, values]) => DRAWN.every((name) => this.values[name] === (values[name] ?? this.start[name]));
    this.style.value = Object.entries(this.styles).find(fits)?.[0] ?? OWN;
    this.own.hidden = this.style.value !== OWN;
  }
}

/** The name of one setting, as it is shown. */
export const settingName = (name) => [...SLIDERS, ...MORE].find(([each]) => each === name)?.[1].toLowerCase() ?? name;

/** Open or close the panel. */
export function toggleSettings(open = find("settings").hidden) {
  find("settings").hidden = !open;
  find("settings-open").setAttribute("aria-expanded", String(open));
}
