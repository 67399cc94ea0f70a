// Conversations as JSON, and back. What comes in is checked field by field, and made anew from the fields that are known.

import { Conversation, ROOT } from "./conversation.js";

const FORMAT = "rhapsode-conversations";
const VERSION = 1;
export const LARGEST_FILE = 50_000_000; // bytes
const MOST_CONVERSATIONS = 1000;
const MOST_NODES = 10_000;
const MOST_IDS = 2_000_000;
const LONGEST_TEXT = 10_000_000;
const LONGEST_TITLE = 200;

/** What is wrong, and where: `conversations[0].nodes[3].role: must be one of user, model`. */
export class FormError extends Error {
  constructor(where, message) {
    super(where ? `${where}: ${message}` : message);
  }
}

// Each check takes a value and its place, and returns the value or throws.
const text = (most) => (value, where) => {
  if (typeof value !== "string") throw new FormError(where, "must be a text");
  if (value.length > most) throw new FormError(where, `is longer than ${most} characters`);
  return value;
};
const number = (low, high) => (value, where) => {
  if (typeof value !== "number" || !(value >= low && value <= high)) {
    throw new FormError(where, `must be a number from ${low} to ${high}`);
  }
  return value;
};
const integer = (low, high) => (value, where) => {
  if (!Number.isInteger(value) || value < low || value > high) {
    throw new FormError(where, `must be a whole number from ${low} to ${high}`);
  }
  return value;
};
const flag = (value, where) => {
  if (typeof value !== "boolean") throw new FormError(where, "must be true or false");
  return value;
};
const oneOf = (...known) => (value, where) => {
  if (!known.includes(value)) throw new FormError(where, `must be one of ${known.join(", ")}`);
  return value;
};
const orNull = (check) => (value, where) => (value === null ? null : check(value, where));
const optional = (check) => Object.assign((value, where) => check(value, where), { optional: true });
const list = (check, most) => (value, where) => {
  if (!Array.isArray(value)) throw new FormError(where, "must be a list");
  if (value.length > most) throw new FormError(where, `has more than ${most} entries`);
  return value.map((entry, place) => check(entry, `${where}[${place}]`));
};
const record = (fields) => (value, where) => {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new FormError(where, "must be an object");
  const dot = where ? `${where}.` : "";
  for (const key of Object.keys(value)) {
    if (!Object.hasOwn(fields, key)) throw new FormError(`${dot}${key}`, "is not known");
  }
  const made = {};
  for (const [key, check] of Object.entries(fields)) {
    if (Object.hasOwn(value, key)) made[key] = check(value[key], `${dot}${key}`);
    else if (!check.optional) throw new FormError(`${dot}${key}`, "is missing");
  }
  return made;
};

const id = integer(0, 2 ** 31);
const place = orNull(integer(0, MOST_NODES));

const TOKEN = record({
  id,
  text: text(10_000),
  logprob: orNull(number(-1e6, 1e-3)),
  bytes: optional(list(integer(0, 255), 10_000)), // where they are no whole characters
  end: optional(flag),
});

export const SAMPLING = {
  temperature: number(0, 100),
  top_p: number(0, 1),
  top_k: integer(0, 2 ** 31),
  min_p: number(0, 1),
  typical_p: number(0, 1),
  repetition_penalty: number(0, 100),
  presence_penalty: number(-2, 2),
  frequency_penalty: number(-2, 2),
  seed: integer(0, Number.MAX_SAFE_INTEGER),
  max_tokens: integer(1, 2 ** 31),
};

const NODE = record({
  parent: integer(ROOT, MOST_NODES),
  shown: place,
  role: oneOf("user", "model"),
  text: text(LONGEST_TEXT),
  model: optional(text(1000)),
  prompt: optional(orNull(list(id, MOST_IDS))),
  tokens: optional(list(TOKEN, MOST_IDS)),
  sampling: optional(record(SAMPLING)),
  finish: optional(oneOf("stop", "length", "context", "stopped", "failed")),
  speed: optional(orNull(number(0, 1e9))),
});

const CONVERSATION = record({
  title: text(LONGEST_TITLE),
  mode: oneOf("chat", "continuation"),
  system: text(LONGEST_TEXT),
  changed: integer(0, 8.64e15),
  shown: place,
  nodes: list(NODE, MOST_NODES),
});

const FILE = record({
  format: oneOf(FORMAT),
  version: oneOf(VERSION),
  conversations: list((value) => value, MOST_CONVERSATIONS),
});

/** One conversation from what JSON.parse gave. */
export function conversationOf(value, where = "", known = {}) {
  const made = CONVERSATION(value, where);
  const dot = where ? `${where}.` : "";
  const shows = (parent, shown, at) => {
    if (shown !== null && made.nodes[shown]?.parent !== parent) throw new FormError(at, "is no child of this node");
  };
  shows(ROOT, made.shown, `${dot}shown`);
  made.nodes.forEach((node, index) => {
    const at = `${dot}nodes[${index}]`;
    if (node.parent >= index) throw new FormError(`${at}.parent`, "must stand before its child");
    shows(index, node.shown, `${at}.shown`);
    if (node.role === "user") return;
    for (const key of ["model", "tokens", "sampling", "finish"]) {
      if (!(key in node)) throw new FormError(`${at}.${key}`, "is missing");
    }
    if (node.tokens.map((token) => token.text).join("") !== node.text) {
      throw new FormError(`${at}.tokens`, "do not spell the text");
    }
  });
  return new Conversation({ ...made, ...known });
}

/** What JSON.stringify may write of a conversation. An answer that is still being written counts as stopped here. */
export function plain({ title, mode, system, changed, shown, nodes }) {
  const written = nodes.map(({ parent, shown, role, text, model, prompt, tokens, sampling, finish, speed }) =>
    role === "user"
      ? { parent, shown, role, text }
      : { parent, shown, role, text, model, prompt: prompt ?? null, tokens, sampling, finish: finish ?? "stopped", speed: speed ?? null },
  );
  return { title, mode, system, changed, shown, nodes: written };
}

/** The file of some conversations. */
export function fileOf(conversations) {
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations: conversations.map(plain) }, null, 1);
}

/** The conversations of a file's text. */
export function conversationsOf(json) {
  let value;
  try {
    value = JSON.parse(json);
  } catch (error) {
    throw new FormError("", `It is not JSON (${error.message}).`);
  }
  return FILE(value, "").conversations.map((each, index) => conversationOf(each, `conversations[${index}]`));
}
