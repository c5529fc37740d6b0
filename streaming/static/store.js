/**
 * Conversations and settings in localStorage, shared by the tabs of one browser. Each conversation has a key of its
 * own, so that two tabs that write different ones do not undo each other's work.
 */

const PREFIX = "jitney.chat.";
const SETTINGS = "jitney.settings";

/** Newest first: `id`, `title`, `updatedAt`. */
export function list() {
  const ids = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  const chats = ids.map((key) => read(key)).filter((chat) => chat?.id && Array.isArray(chat.messages));
  return chats.sort((a, b) => b.updatedAt - a.updatedAt);
}

export const load = (id) => read(PREFIX + id);

/** Raises nothing when the browser's room is used up: the oldest conversations make way. */
export function save(chat) {
  for (;;) {
    try {
      return localStorage.setItem(PREFIX + chat.id, JSON.stringify(chat));
    } catch {
      const oldest = list().findLast((other) => other.id !== chat.id);
      if (!oldest) return;
      remove(oldest.id);
    }
  }
}

export const remove = (id) => localStorage.removeItem(PREFIX + id);

export function create() {
  return { id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, title: "", updatedAt: Date.now(), messages: [] };
}

export const settings = () => read(SETTINGS) ?? {};
export const saveSettings = (values) => localStorage.setItem(SETTINGS, JSON.stringify(values));

/** Call `changed(id)` when another tab has changed a conversation. */
export function watch(changed) {
  addEventListener("storage", ({ key }) => {
    if (key?.startsWith(PREFIX)) changed(key.slice(PREFIX.length));
  });
}

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}
