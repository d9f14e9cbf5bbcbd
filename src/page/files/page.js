// Puts those parts of the page in place that the server says have changed. Without it the page is the same as of when it was loaded.
'use strict';

const main = document.getElementById('main');
const liveLine = document.getElementById('live');
const liveText = document.getElementById('live-text');
const announced = document.getElementById('announced');
const pauseButton = document.getElementById('pause');

// Whoever listens to the page hears of new reviews this often at most.
const QUIET = 30000;
// A stream ends by itself every minute; nobody has to know of the two seconds until the next one.
const PATIENCE = 8000;

let source = null;
let paused = false;
let late = 0;
let reviewed = Number(main.dataset.reviewed);
let told = Date.now();
const waiting = new Map();

function say(state, text, aloud) {
  if (liveLine.dataset.state === state) return;
  liveLine.dataset.state = state;
  liveText.textContent = text;
  if (aloud) announced.textContent = text;
}

function busy(section) {
  const selection = document.getSelection();
  return selection && !selection.isCollapsed && section.contains(selection.anchorNode);
}

// What a person has opened or is at, in a section that is about to be another one.
function place(section) {
  const open = [...section.querySelectorAll('details[open]')].map((details) => details.dataset.key);
  const at = section.contains(document.activeElement) ? document.activeElement : null;
  const key = at && at.closest('details') ? at.closest('details').dataset.key : null;
  return { open, id: at && at.id, key, href: at && at.getAttribute('href') };
}

function restore(section, { open, id, key, href }) {
  let at = id ? document.getElementById(id) : null;
  for (const details of section.querySelectorAll('details')) {
    if (open.includes(details.dataset.key)) details.open = true;
    if (key && details.dataset.key === key) at = details.querySelector('summary');
  }
  if (!at && href) at = [...section.querySelectorAll('a')].find((link) => link.getAttribute('href') === href);
  if (at) at.focus({ preventScroll: true });
}

function put(part) {
  const section = document.getElementById(part.id);
  if (!section || section.dataset.digest === part.digest) return;
  if (paused || busy(section)) {
    waiting.set(part.id, part);
    return;
  }
  waiting.delete(part.id);
  const before = place(section);
  const parsed = new DOMParser().parseFromString(part.html, 'text/html');
  section.replaceChildren(...parsed.body.childNodes);
  section.dataset.digest = part.digest;
  restore(section, before);
}

function putAll() {
  for (const part of [...waiting.values()]) put(part);
}

function announce(now) {
  const more = now - reviewed;
  if (paused || more <= 0 || Date.now() - told < QUIET) return;
  announced.textContent = more === 1 ? 'One new review' : `${more} new reviews`;
  reviewed = now;
  told = Date.now();
}

function listen() {
  if (source || document.hidden) return;
  source = new EventSource(main.dataset.events);
  source.addEventListener('open', () => {
    clearTimeout(late);
    late = 0;
    if (!paused) say('live', 'Live', false);
  });
  source.addEventListener('part', (event) => {
    const part = JSON.parse(event.data);
    put(part);
    announce(part.reviewed);
  });
  source.addEventListener('error', () => {
    if (source.readyState === EventSource.CLOSED) {
      say('ended', 'Not live any more: reload the page', true);
    } else if (!late) {
      late = setTimeout(() => say('late', 'No connection; trying again', true), PATIENCE);
    }
  });
}

function hush() {
  if (source) source.close();
  source = null;
}

pauseButton.hidden = false;
pauseButton.addEventListener('click', () => {
  paused = !paused;
  pauseButton.textContent = paused ? 'Go on' : 'Pause';
  say(paused ? 'paused' : 'live', paused ? 'Paused' : 'Live', true);
  if (!paused) putAll();
});
document.addEventListener('selectionchange', () => {
  if (waiting.size && document.getSelection().isCollapsed) putAll();
});
// Nobody is told what nobody sees.
document.addEventListener('visibilitychange', () => (document.hidden ? hush() : listen()));
listen();
