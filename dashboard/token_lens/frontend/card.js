// The hover card: token, divergences, both models' most likely tokens, rest of the vocabulary, entropies. This order
// never changes, so that the eye learns where to look.
const ROWS_SHOWN = 10;

function fillCard(card, data, index, pinned) {
  card.replaceChildren();
  const special = data.flags[index] === 1;
  const trained = isTrained(data, index);
  const head = append(
    make("div", "card-head"),
    make("span", special ? "card-token special" : "card-token", quoted(data.texts[index])),
    make("span", "card-meta", `id ${data.token_ids[index]} · position ${index + 1} of ${data.texts.length}`),
    data.horizon === null ? null : make("span", trained ? "card-trained" : "card-untrained", trained ? "trained" : "not trained"),
  );
  const figures = make("dl", "card-figures");
  const list = [
    ["reverse KL", inUnit(METRICS[0], data.reverse_kl[index])],
    ["forward KL", inUnit(METRICS[1], data.forward_kl[index])],
    ["JSD", inUnit(METRICS[2], data.jsd[index])],
    ["Δ log-prob", inUnit(METRICS[3], data.teacher_logprob[index] - data.student_logprob[index])],
  ];
  for (const [name, value] of list) append(figures, append(make("div"), make("dt", "", name), make("dd", "", value)));
  append(card, head, figures, candidateTable(data, index));
  append(
    card,
    make(
      "div",
      "card-foot",
      `entropy: student ${data.student_entropy[index].toFixed(2)}, teacher ${data.teacher_entropy[index].toFixed(2)} nats` +
        ` · rank: student ${data.student_rank[index]}, teacher ${data.teacher_rank[index]}`,
    ),
  );
  if (pinned) {
    const close = make("button", "card-close", "×");
    close.type = "button";
    close.setAttribute("aria-label", `Unpin position ${index + 1}`);
    close.dataset.unpin = String(index);
    head.appendChild(close);
    card.setAttribute("role", "dialog");
    card.setAttribute("aria-label", `Token ${quoted(data.texts[index])} at position ${index + 1}`);
  }
}

function candidateTable(data, index) {
  const ids = data.candidate_ids[index];
  const student = data.candidate_student_logprob[index];
  const teacher = data.candidate_teacher_logprob[index];
  const actual = data.token_ids[index];
  let shown = ids.map((_, at) => at).slice(0, ROWS_SHOWN);
  const actualAt = ids.indexOf(actual);
  if (actualAt >= ROWS_SHOWN) shown = [...shown.slice(0, ROWS_SHOWN - 1), actualAt];
  const table = make("table", "card-table");
  const header = make("tr");
  for (const [name, kind] of [["token", ""], ["student", "number key-student"], ["teacher", "number key-teacher"], ["", ""], ["Δ", "number"]])
    header.appendChild(make("th", kind, name));
  append(table, append(make("thead"), header));
  const body = make("tbody");
  let studentRest = 1;
  let teacherRest = 1;
  for (const at of shown) {
    studentRest -= Math.exp(student[at]);
    teacherRest -= Math.exp(teacher[at]);
    const row = make("tr", ids[at] === actual ? "actual" : "");
    append(
      row,
      make("td", "candidate", quoted(data.vocabulary[ids[at]] ?? `id ${ids[at]}`)),
      make("td", "number", percent(student[at])),
      make("td", "number", percent(teacher[at])),
      append(make("td", "bars"), pairedBars(Math.exp(student[at]), Math.exp(teacher[at]))),
      make("td", "number", inUnit(METRICS[3], teacher[at] - student[at])),
    );
    body.appendChild(row);
  }
  const rest = make("tr", "rest");
  append(
    rest,
    make("td", "candidate", "rest of vocabulary"),
    make("td", "number", `${(Math.max(0, studentRest) * 100).toFixed(1)} %`),
    make("td", "number", `${(Math.max(0, teacherRest) * 100).toFixed(1)} %`),
    append(make("td", "bars"), pairedBars(Math.max(0, studentRest), Math.max(0, teacherRest))),
    make("td", "number", ""),
  );
  return append(table, append(body, rest));
}

function pairedBars(student, teacher) {
  const pair = make("span", "pair");
  for (const [kind, share] of [["student", student], ["teacher", teacher]]) {
    const bar = make("span", `bar ${kind}`);
    bar.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
    pair.appendChild(bar);
  }
  return pair;
}

// Beside the token, inside the lens, never under the pointer.
function placeCard(card, token, frame) {
  const around = frame.getBoundingClientRect();
  const spot = token.getBoundingClientRect();
  card.style.visibility = "hidden";
  card.hidden = false;
  const width = card.offsetWidth;
  const height = card.offsetHeight;
  const left = Math.max(0, Math.min(spot.left - around.left, around.width - width));
  const below = spot.bottom - around.top + 8;
  const above = spot.top - around.top - height - 8;
  const fitsBelow = spot.bottom + 8 + height <= window.innerHeight || spot.top - height - 8 < 0;
  card.style.left = `${left}px`;
  card.style.top = `${fitsBelow ? below : above}px`;
  card.style.visibility = "";
}
