/** The API key of this tab, where the server asks for one. */

const KEY = "jitney.key";
const dialog = document.getElementById("key");

export const has = () => Boolean(sessionStorage.getItem(KEY));

/** Headers that carry it. */
export function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** `fetch` with the key; asks for one as long as the server refuses what there is. */
export async function request(url, options = {}) {
  for (;;) {
    const reply = await fetch(url, { ...options, headers: { ...options.headers, ...headers() } });
    if (reply.status !== 401) return reply;
    await ask();
  }
}

let asking = null;

function ask() {
  return (asking ??= show().finally(() => (asking = null)));
}

function show() {
  const input = dialog.querySelector("input");
  if (has()) document.getElementById("key-hint").textContent = "That key is not valid here.";
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const close = () => {
      if (input.value.trim()) sessionStorage.setItem(KEY, input.value.trim());
      resolve();
    };
    dialog.addEventListener("close", close, { once: true });
  });
}
