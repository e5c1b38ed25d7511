// Small helpers that all pages share.

/** Below this address lies all that belongs to the page. */
export const root = document.documentElement.dataset.root;

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function drawn(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** The answer to a request; what the server says where something is wrong becomes the error. */
export async function ask(address, options = {}) {
  const answer = await fetch(address, options);
  if (!answer.ok) throw new Error((await answer.text()).trim() || `the server answered ${answer.status}`);
  return answer;
}

export async function askJson(address, options = {}) {
  return (await ask(address, options)).json();
}

export const part = encodeURIComponent;

/** The address of a thumbnail of a stored slice. */
export function sliceAddress(store, slice) {
  return `${root}/store/${store}/case/${part(slice.task)}/${part(slice.case)}/slice.png?number=${slice.slice}&mask`;
}
