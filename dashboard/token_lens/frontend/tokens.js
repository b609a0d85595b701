// The completion as one span per token: built once per rollout, painted again whenever a control moves.
const KINDS = ["", " special", " fragment"];

// Whether the loss applied to a token: inside the horizon, and not before the window or suffix that carries loss. Answers
// of the playground have no horizon, and nothing is said of their training.
function isTrained(data, index) {
  return data.horizon === null || (index >= data.trained_start && index < data.horizon);
}

// One span per token, not yet on the page; each knows its place as `at`.
function buildTokens(data) {
  const pattern = make("span");
  pattern.tabIndex = -1;
  pattern.setAttribute("role", "button");
  const spans = data.texts.map((_, index) => {
    const span = pattern.cloneNode();
    span.className = `token${KINDS[data.flags[index]] ?? ""}${isTrained(data, index) ? "" : " untrained"}`;
    span.at = index;
    return span;
  });
  if (spans.length) spans[0].tabIndex = 0;
  return spans;
}

// Puts spans from..to on the page, and between them the lines: where training starts and stops, or texts part.
function attachTokens(strip, spans, from, to, data) {
  const fragment = document.createDocumentFragment();
  const lines = new Map(data.lines);
  for (let index = from; index < to; index += 1) {
    if (lines.has(index) && index > 0) {
      const line = make("div", "boundary", lines.get(index));
      line.setAttribute("role", "separator");
      fragment.appendChild(line);
    }
    fragment.appendChild(spans[index]);
  }
  strip.appendChild(fragment);
}

// Text of the tokens; with marks a blank is a dot and a newline is ⏎ followed by a real line break.
function writeTokens(spans, data, marks) {
  spans.forEach((span) => {
    const index = span.at;
    const text = data.texts[index];
    const breaks = marks ? (text.match(/\n/g) ?? []).length : 0;
    span.textContent = marks && data.flags[index] !== 2 ? withMarks(text) : text; // a fragment is hex, not blanks
    for (let more = 0; more < breaks; more += 1) span.appendChild(make("br"));
    if (text === "") span.textContent = marks ? "∅" : " ";
  });
}

function paintTokens(spans, view) {
  const hot = new Set(view.hot);
  spans.forEach((span) => {
    const index = span.at;
    const value = view.values[index];
    const shade = view.shadeOf(value);
    span.style.backgroundColor = shade.background;
    span.style.color = shade.text;
    span.classList.toggle("hot", hot.has(index));
    span.classList.toggle("clipped", Math.abs(onScale(view.metric, value)) > view.limit);
  });
}

// What a screen reader says. Written when nothing else is to be done: nobody reads 2,048 labels in the first moment.
function labelTokens(spans, data, view) {
  spans.forEach((span, index) => span.setAttribute("aria-label", labelOf(data, view, index, view.values[index])));
}

function labelOf(data, view, index, value) {
  const teacherWants = wantedByTeacher(data, index);
  const wish = teacherWants === data.token_ids[index] ? "the teacher agrees" : `the teacher prefers ${quoted(textOf(data, teacherWants))}`;
  return `position ${index + 1}, token ${quoted(data.texts[index])}, ${view.metric.label} ${inUnit(view.metric, value)}, ${wish}`;
}

function textOf(data, id) {
  return data.vocabulary[id] ?? `id ${id}`;
}

// The teacher's most likely token at a position.
function wantedByTeacher(data, index) {
  const logprobs = data.candidate_teacher_logprob[index];
  let best = 0;
  for (let at = 1; at < logprobs.length; at += 1) if (logprobs[at] > logprobs[best]) best = at;
  return data.candidate_ids[index][best];
}

// The hottest tokens as `… context [token] → what the teacher wanted (62 %)`: a list to walk through.
function fillForks(list, data, view, choose) {
  const ten = view.hot
    .slice()
    .sort((left, right) => Math.abs(view.values[right]) - Math.abs(view.values[left]))
    .slice(0, 10);
  if (!ten.length) return list.replaceChildren(make("li", "fork-context", "Nowhere worth a mark: every token is below 2 % of the scale."));
  return list.replaceChildren(
    ...ten.map((index) => {
      const wanted = wantedByTeacher(data, index);
      const at = data.candidate_ids[index].indexOf(wanted);
      const button = make("button", "fork");
      button.type = "button";
      append(
        button,
        make("span", "fork-position", String(index + 1)),
        make("span", "fork-context", `…${withMarks(data.texts.slice(Math.max(0, index - 4), index).join(""))} `),
        make("span", "fork-token", quoted(data.texts[index])),
        make("span", "fork-arrow", wanted === data.token_ids[index] ? " · the teacher agrees," : " → teacher "),
        wanted === data.token_ids[index] ? null : make("span", "fork-token", quoted(textOf(data, wanted))),
        make("span", "fork-value", ` ${percent(data.candidate_teacher_logprob[index][at])} · ${inUnit(view.metric, view.values[index])}`),
      );
      button.addEventListener("click", () => choose(index));
      return append(make("li"), button);
    }),
  );
}

// The same data as an ordinary table, made when it is opened first.
function tableOf(data) {
  const table = make("table", "all-table");
  const isRun = data.horizon !== null;
  const names = ["position", "token", "id", ...(isRun ? ["trained"] : []), ...METRICS.map((metric) => metric.label), "teacher's choice"];
  const header = make("tr");
  for (const name of names) header.appendChild(make("th", "", name));
  const body = make("tbody");
  const columns = METRICS.map((metric) => valuesOf(data, metric.key));
  data.texts.forEach((text, index) => {
    const row = make("tr");
    const cells = [
      String(index + 1),
      quoted(text),
      String(data.token_ids[index]),
      ...(isRun ? [isTrained(data, index) ? "yes" : "no"] : []),
      ...columns.map((values, at) => inUnit(METRICS[at], values[index])),
      quoted(textOf(data, wantedByTeacher(data, index))),
    ];
    for (const cell of cells) row.appendChild(make("td", "", cell));
    body.appendChild(row);
  });
  return append(table, append(make("thead"), header), body);
}
