// The timeline of the page of app.py. Runs once, where the timeline is; `element` stays while its content is replaced.
const overlay = () => document.querySelector("#overlay video");
const timeline = () => element.querySelector(".timeline");

function go(second) {
  const { seconds, rate } = timeline().dataset;
  const bounded = Math.min(Math.max(second, 0), Number(seconds) - 0.001);
  if (overlay()) overlay().currentTime = bounded;
  trigger("select", { number: Math.floor(bounded * Number(rate)) });
}

element.addEventListener("click", (event) => {
  const track = event.target.closest(".track");
  if (!track || !timeline()) return;
  const box = track.getBoundingClientRect();
  go(((event.clientX - box.left) / box.width) * Number(timeline().dataset.seconds));
});

element.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!steps || !timeline() || !overlay()) return;
  event.preventDefault();
  go(overlay().currentTime + steps / Number(timeline().dataset.rate));
});

// The head follows the video, and what sounds at the moment stands out: ten times a second, to be easy on phones.
function follow() {
  const chart = timeline();
  const video = overlay();
  if (chart && video) {
    const now = video.currentTime;
    chart.querySelector(".head").style.left = `${(now / Number(chart.dataset.seconds)) * 100}%`;
    chart.setAttribute("aria-valuenow", now.toFixed(2));
    for (const row of chart.querySelectorAll(".row.class")) {
      const sounds = [...row.querySelectorAll(".bar")].some(
        (bar) => now >= Number(bar.dataset.start) && now < Number(bar.dataset.end),
      );
      row.classList.toggle("now", sounds);
    }
  }
}
setInterval(follow, 100);
