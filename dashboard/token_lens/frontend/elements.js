// Everything on screen is made here: text goes in by textContent only, because text from models is hostile input.
function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function append(parent, ...children) {
  for (const child of children) if (child) parent.appendChild(child);
  return parent;
}

// A token with its blanks made visible; the marks are left out of copied text by CSS.
function withMarks(text) {
  return text.replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍");
}

function quoted(text) {
  return `“${withMarks(text)}”`;
}
