// The list of conversations at the side: open, rename, delete, and take back.

import { element } from "./dom.js";

export const titleOf = (conversation) => conversation.title || firstWords(conversation) || "New conversation";

function firstWords(conversation) {
  const text = conversation.nodes.find((node) => node.role === "user")?.text ?? conversation.nodes[0]?.text ?? "";
  const line = text.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 60).trimEnd()}…` : line;
}

/** Draw the list. `act` has open, rename and remove. */
export function showList(root, conversations, current, act) {
  root.replaceChildren(...conversations.map((each) => row(each, each === current, act)));
}

function row(conversation, isCurrent, act) {
  const title = titleOf(conversation);
  const open = element(
    "button", { type: "button", class: "conversation", "aria-current": isCurrent ? "true" : null, onclick: () => act.open(conversation) },
    element("bdi", {}, title),
  );
  const rename = element(
    "button", { type: "button", class: "quiet", "aria-label": `Rename ${title}`, onclick: () => editTitle(item, conversation, act) }, "Rename",
  );
  const remove = element(
    "button", { type: "button", class: "quiet", "aria-label": `Delete ${title}`, onclick: () => act.remove(conversation) }, "Delete",
  );
  const item = element("li", { class: isCurrent ? "current" : null }, open, element("span", { class: "tools" }, rename, remove));
  return item;
}

function editTitle(item, conversation, act) {
  let done = false;
  const finish = (value) => {
    if (done) return;
    done = true;
    act.rename(conversation, value);
  };
  const input = element("input", {
    type: "text", class: "title", maxlength: 200, dir: "auto", "aria-label": "Title", value: titleOf(conversation),
    onblur: () => finish(input.value.trim()),
    onkeydown: (event) => {
      if (event.key === "Enter") finish(input.value.trim());
      else if (event.key === "Escape") {
        event.stopPropagation();
        finish(conversation.title);
      }
    },
  });
  item.replaceChildren(input);
  input.focus();
  input.select();
}
