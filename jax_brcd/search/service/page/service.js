// What the page asks the service, and the token it asks with. The token comes by the address (#token=...) or is typed.

const KEPT = "jax_brcd token";

function tokenOfAddress() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(KEPT, given);
    history.replaceState(history.state, "", location.pathname);  // out of the address, and so of screens and histories
  }
  return sessionStorage.getItem(KEPT);
}

let token = tokenOfAddress();

export const headers = () => (token ? { Authorization: `Bearer ${token}` } : {});

/** The answer to a request; an error's text is what the service says. Asks for the token where one is needed. */
export async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { ...options.headers, ...headers() } });
  if (answer.ok) return answer;
  if (answer.status === 401) {
    await typedToken();
    return ask(path, options);
  }
  let problem = `the service answered ${answer.status}`;
  try { problem = (await answer.json()).error; } catch { /* no JSON, as of a proxy between */ }
  throw new Error(problem);
}

let typing = null;  // several requests may find at once that they need a token

function typedToken() {
  typing ??= new Promise((resolve) => {
    const dialog = document.getElementById("ask-token"), field = document.getElementById("token");
    dialog.addEventListener("close", () => {
      token = field.value;
      sessionStorage.setItem(KEPT, token);
      typing = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return typing;
}

/** Shows a picture of the service: by its address, or where a token is needed as bytes that were fetched with it. */
export async function show(image, address) {
  if (!token) {
    image.src = address;
    return;
  }
  try {
    const url = URL.createObjectURL(await (await ask(address)).blob());
    image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    image.src = url;
  } catch { image.removeAttribute("src"); }
}

/** Opens an original in a tab of its own. */
export async function openOriginal(address) {
  const tab = window.open(token ? "" : `${address}?original=1`, "_blank");
  if (token && tab) tab.location = URL.createObjectURL(await (await ask(`${address}?original=1`)).blob());
}
