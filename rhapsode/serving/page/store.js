// What this browser keeps between visits: each conversation under a key of its own, so that two windows do not
// overwrite each other's. Without storage everything works, until the page is closed.

import { conversationOf, plain } from "./form.js";

const CONVERSATION = "rhapsode.conversation.";
const SETTINGS = "rhapsode.settings";
export const MOST = 500; // conversations

const FULL =
  "The browser's storage is full: what is new here is lost when the page is closed. Export it, or delete conversations.";
const NONE = "This browser keeps nothing for this page: conversations last until it is closed.";

/** The storage, or null where the browser gives none. */
function storage() {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}

/** All that is kept, the newest first, and what went wrong, in words. */
export function load() {
  const kept = storage();
  if (kept === null) return { conversations: [], problem: NONE };
  const conversations = [];
  let broken = 0;
  for (const key of Object.keys(kept).filter((name) => name.startsWith(CONVERSATION))) {
    try {
      conversations.push(conversationOf(JSON.parse(kept.getItem(key)), "", { id: key.slice(CONVERSATION.length) }));
    } catch {
      broken += 1;
    }
  }
  conversations.sort((one, other) => other.changed - one.changed);
  const problem = broken ? `${broken} of the kept conversations cannot be read and were left out.` : null;
  return { conversations, problem };
}

/** Keep a conversation; returns what went wrong, in words, or null. */
export const keep = (conversation) => put(CONVERSATION + conversation.id, plain(conversation));

/** Forget a conversation. */
export const forget = (conversation) => storage()?.removeItem(CONVERSATION + conversation.id);

export const keepSettings = (settings) => put(SETTINGS, settings);

/** The settings that were kept, as they are: whoever reads them checks each. */
export function settings() {
  try {
    const kept = JSON.parse(storage()?.getItem(SETTINGS) ?? "{}");
    return typeof kept === "object" && kept !== null ? kept : {};
  } catch {
    return {};
  }
}

function put(key, value) {
  const kept = storage();
  if (kept === null) return NONE;
  try {
    kept.setItem(key, JSON.stringify(value));
    return null;
  } catch {
    return FULL;
  }
}

/** Call back when another window of this page keeps or forgets a conversation. */
export function onChange(act) {
  window.addEventListener("storage", (event) => {
    if (event.key === null || event.key.startsWith(CONVERSATION)) act();
  });
}
