// Builds and updates elements. Text only ever enters as text: nothing that a device or a model says can become markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; a null attribute or child is left out. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Set a node's text, unless it says that already: a selection in it survives the next snapshot. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Set an attribute to a value, or remove it for null. */
export function mark(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/**
 * Make the children of `parent` those of `items`, in order, keeping the element of each key.
 * `create(item)` returns an element; `update(element, item)` is called for new and kept ones.
 */
export function keyed(parent, items, key, create, update) {
  const kept = new Map();
  for (const child of parent.children) if (child.dataset.key !== undefined) kept.set(child.dataset.key, child);
  let place = [...parent.children].find((child) => child.dataset.key !== undefined) ?? null;
  for (const item of items) {
    const name = String(key(item));
    let node = kept.get(name);
    if (node) kept.delete(name);
    else {
      node = create(item);
      node.dataset.key = name;
    }
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
    update(node, item);
  }
  for (const node of kept.values()) node.remove();
}
