// Sampling from a diffusion model, whole, in plain JavaScript: the noise, the network, the loop.
// It runs in a worker of the browser (`ddpm` is the worker); `ddpmLive`, at the end, is the page around it.
// A picture is {c, h, w, data}: c channels of h rows of w numbers, one after another in a Float32Array.

function ddpm() {
  'use strict'
  const { fround, sqrt, exp, log, max, min, floor } = Math

  // --- Weights: a safetensors file with numbers of half precision -------------------------------------------------
  const TWO_TO = Array.from({ length: 32 }, (_, e) => 2 ** (e - 15))

  function half(bits) {                                  // 1 bit of sign, 5 of exponent, 10 of fraction
    const sign = bits >> 15 ? -1 : 1, e = bits >> 10 & 31, f = bits & 1023
    return sign * (e ? TWO_TO[e] * (1 + f / 1024) : TWO_TO[1] * f / 1024)
  }

  function readWeights(buffer) {                         // {name: {shape, data}}
    const length = Number(new DataView(buffer).getBigUint64(0, true)), start = 8 + length
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)))
    const facts = header.__metadata__, tensors = {}
    delete header.__metadata__
    for (const [name, { shape, data_offsets: [from, to] }] of Object.entries(header)) {
      const bits = new Uint16Array(buffer.slice(start + from, start + to))
      tensors[name] = { shape, data: Float32Array.from(bits, half) }
    }
    return { tensors, facts }
  }

  // --- Noise: Philox 4×64, then Box and Muller, each operation rounded to float32 ----------------------------------
  const word = n => BigInt.asUintN(64, n)

  function philox(counter, seed) {                       // 256 bits for a counter of 256 bits
    let [c0, c1, c2, c3] = [0n, 64n, 128n, 192n].map(k => word(counter >> k))
    let k0 = BigInt(seed), k1 = 0n
    for (let round = 0; round < 10; round++) {
      const a = c0 * 0xD2E7470EE14C6C93n, b = c2 * 0xCA5A826395121157n
      ;[c0, c1, c2, c3] = [b >> 64n ^ c1 ^ k0, word(b), a >> 64n ^ c3 ^ k1, word(a)]
      k0 = word(k0 + 0x9E3779B97F4A7C15n)
      k1 = word(k1 + 0xBB67AE8584CAA73Bn)
    }
    return [c0, c1, c2, c3]
  }

  const f32 = new Float32Array(1), i32 = new Int32Array(f32.buffer)
  const bitsOf = x => { f32[0] = x; return i32[0] }
  const ofBits = n => { i32[0] = n; return f32[0] }
  const LOG = [-2.00000024, -.66652128, -.41300312].map(fround)
  const SIN = [1.11072075, -.114191286, .0035214019, -5.0847353e-5].map(fround)
  const HALF = 0x3F3504F3, UP62 = 62 << 23, TWO62 = 2 ** 62, LN2 = fround(log(2))

  function series(c, x) {                                // x (c₀ + c₁ x² + …)
    const z = fround(x * x)
    let p = fround(z * c[c.length - 1])
    for (let k = c.length - 2; k > 0; k--) p = fround(fround(p + c[k]) * z)
    return fround(fround(p + c[0]) * x)
  }

  function boxMuller(w1, w2) {                           // 32 and 16 bits: two normals
    let g = fround(w1 | 1)
    g = fround(g * g)
    const n = HALF + UP62 + 2 ** 23 - 1 - bitsOf(g) >> 23, m = ofBits((n << 23) + bitsOf(g))
    const s = fround(fround(m - TWO62) / fround(m + TWO62))
    const r = fround(sqrt(fround(fround(n * LN2) + series(LOG, s))))
    const h = series(SIN, fround(fround(w2 + .5) * 2 ** -15))
    const v = fround(2 - fround(h * h))
    const z1 = fround(r * fround(v - 1))
    return [w1 < 0 ? -z1 : z1, fround(r * fround(h * fround(sqrt(v))))]
  }

  function noise(seed, image, numbers, t = 0) {          // the same numbers as keyed_noise of Python, bit for bit
    const blocks = 3 * max(Math.ceil(numbers / 32), 1), pairs = 16 * blocks / 3
    const words = new BigUint64Array(4 * blocks), first = (BigInt(t) << 128n) + BigInt(image) * BigInt(blocks)
    for (let k = 0; k < blocks; k++) words.set(philox(first + BigInt(k), seed), 4 * k)
    const w1 = new Int32Array(words.buffer), w2 = new Int16Array(words.buffer), z = new Float32Array(2 * pairs)
    for (let k = 0; k < pairs; k++) [z[k], z[pairs + k]] = boxMuller(w1[k], w2[2 * pairs + k])
    return z.slice(0, numbers)
  }

  // --- The network: seven blocks on four scales ---------------------------------------------------------------------
  const picture = (c, h, w) => ({ c, h, w, data: new Float32Array(c * h * w) })

  function conv3x3({ c, h, w, data }, { shape: [out], data: weight }, { data: bias }) {
    const y = picture(out, h, w), W = w + 2, wide = new Float32Array(c * (h + 2) * W)    // with a border of zeros
    for (let i = 0; i < c; i++) {
      for (let r = 0; r < h; r++) wide.set(data.subarray((i * h + r) * w, (i * h + r + 1) * w), (i * (h + 2) + r + 1) * W + 1)
    }
    for (let o = 0; o < out; o++) {
      const to = y.data.subarray(o * h * w, (o + 1) * h * w).fill(bias[o])
      for (let i = 0; i < c; i++) {
        const [a1, a2, a3, b1, b2, b3, c1, c2, c3] = weight.subarray((o * c + i) * 9, (o * c + i) * 9 + 9)
        for (let r = 0, p = 0; r < h; r++) {
          let q = (i * (h + 2) + r) * W                  // a window of 3×3 pixels slides along the row
          let u1 = wide[q], u2 = wide[q + 1], v1 = wide[q + W], v2 = wide[q + W + 1], w1 = wide[q + 2 * W], w2 = wide[q + 2 * W + 1]
          for (const end = q + w; q < end; q++) {
            const u3 = wide[q + 2], v3 = wide[q + W + 2], w3 = wide[q + 2 * W + 2]
            to[p++] += a1 * u1 + a2 * u2 + a3 * u3 + b1 * v1 + b2 * v2 + b3 * v3 + c1 * w1 + c2 * w2 + c3 * w3
            u1 = u2; u2 = u3; v1 = v2; v2 = v3; w1 = w2; w2 = w3
          }
        }
      }
    }
    return y
  }

  function conv1x1({ c, h, w, data }, { shape: [out], data: weight }, { data: bias }) {
    const y = picture(out, h, w), n = h * w
    for (let o = 0; o < out; o++) {
      const to = y.data.subarray(o * n, (o + 1) * n).fill(bias[o])
      for (let i = 0; i < c; i++) {
        const k = weight[o * c + i], from = data.subarray(i * n, (i + 1) * n)
        for (let p = 0; p < n; p++) to[p] += k * from[p]
      }
    }
    return y
  }

  const linear = (x, { shape: [out, c], data: weight }, { data: bias }) => Float32Array.from({ length: out }, (_, o) => {
    let sum = bias[o]
    for (let i = 0; i < c; i++) sum += weight[o * c + i] * x[i]
    return sum
  })

  const silu = x => x / (1 + exp(-x))

  function normed({ c, h, w, data }, { data: scale }, { data: shift }) {       // GroupNorm with 8 groups, then SiLU
    const y = picture(c, h, w), n = h * w, size = c / 8 * n
    for (let group = 0; group < 8; group++) {
      let sum = 0, square = 0
      for (let p = group * size; p < (group + 1) * size; p++) sum += data[p]
      const mean = sum / size
      for (let p = group * size; p < (group + 1) * size; p++) square += (data[p] - mean) ** 2
      const by = 1 / sqrt(square / size + 1e-5)
      for (let p = group * size; p < (group + 1) * size; p++) {
        const i = floor(p / n)
        y.data[p] = silu((data[p] - mean) * by * scale[i] + shift[i])
      }
    }
    return y
  }

  function halved({ c, h, w, data }) {                   // the mean of 2×2 pixels
    const y = picture(c, h / 2, w / 2)
    for (let p = 0, i = 0; i < c; i++) {
      for (let r = 0; r < h; r += 2) {
        for (let q = (i * h + r) * w, end = q + w; q < end; q += 2) y.data[p++] = (data[q] + data[q + 1] + data[q + w] + data[q + w + 1]) / 4
      }
    }
    return y
  }

  function doubled({ c, h, w, data }) {                  // each pixel four times
    const y = picture(c, 2 * h, 2 * w)
    for (let p = 0, r = 0; r < c * 2 * h; r++) {
      for (let q = 0; q < 2 * w; q++) y.data[p++] = data[(r >> 1) * w + (q >> 1)]
    }
    return y
  }

  function beside(a, b) {                                // channels of both
    const y = picture(a.c + b.c, a.h, a.w)
    y.data.set(a.data)
    y.data.set(b.data, a.data.length)
    return y
  }

  function unet(tensors) {                               // the network as a function of (x_t, index 0…T−1)
    const get = name => [tensors[name + '.weight'], tensors[name + '.bias']]
    const dim = tensors['time_embed.mlp.3.weight'].shape[0]

    function embedding(index) {                          // sines and cosines, then two layers
      const angle = i => index * fround(exp(-log(10000) * i / (dim / 2 - 1)))
      const waves = Float32Array.from({ length: dim }, (_, i) => i < dim / 2 ? Math.sin(angle(i)) : Math.cos(angle(i - dim / 2)))
      return linear(linear(waves, ...get('time_embed.mlp.0')).map(silu), ...get('time_embed.mlp.3'))
    }

    function block(name, x, time) {
      let h = conv3x3(normed(x, ...get(name + '.norm1')), ...get(name + '.conv1'))
      const n = h.h * h.w
      linear(time, ...get(name + '.time_proj')).forEach((told, o) => { for (let p = o * n; p < (o + 1) * n; p++) h.data[p] += told })
      h = conv3x3(normed(h, ...get(name + '.norm2')), ...get(name + '.conv2'))
      const skip = tensors[name + '.skip.weight'] ? conv1x1(x, ...get(name + '.skip')) : x
      for (let p = 0; p < h.data.length; p++) h.data[p] += skip.data[p]
      return h
    }

    return (x, index) => {
      const time = embedding(index).map(silu)
      const h1 = block('down1', conv3x3(x, ...get('input_conv')), time)
      const h2 = block('down2', halved(h1), time)
      const h3 = block('down3', halved(h2), time)
      let h = block('middle', halved(h3), time)
      h = block('up3', beside(doubled(h), h3), time)
      h = block('up2', beside(doubled(h), h2), time)
      h = block('up1', beside(doubled(h), h1), time)
      return conv3x3(h, ...get('output_conv')).data
    }
  }

  // --- The sampler: a table of ᾱ, a plan of rows, a denoiser, a step, and the loop ---------------------------------
  function schedule(T = 1000, first = 1e-4, last = .02) {                      // ᾱ_0 … ᾱ_T
    const abar = [1]
    for (let t = 1; t <= T; t++) abar.push(abar[t - 1] * (1 - (first + (t - 1) * (last - first) / (T - 1))))
    return abar
  }

  function levels(n, spacing, T) {                       // n different whole numbers, T first
    const even = k => spacing === 'trailing' ? T - k * (T / n) : n === 1 ? T : T - k * (T - 1) / (n - 1)
    return Array.from({ length: n }, (_, k) => floor(even(k) + .5))
  }

  const rowsOf = (ts, abar) => ts.map((t, k) => ({ t, s: ts[k + 1] || 0, abar_t: abar[t], abar_s: abar[ts[k + 1] || 0] }))

  function denoiser(net, predicts, c, h, w) {            // (x_t, row) -> [x̂₀, ε̂], clipped to [−1, 1]
    return (x, { t, abar_t }) => {
      const out = net({ c, h, w, data: x }, t - 1), a = sqrt(abar_t), b = sqrt(1 - abar_t), least = max(a, .2)
      const x0 = x.map((xt, p) => {
        const guess = predicts === 'eps' ? (xt - b * out[p]) / a : a * xt - b * (out[p] - b * xt) / least
        return min(max(guess, -1), 1)
      })
      return [x0, x.map((xt, p) => (xt - a * x0[p]) / b)]
    }
  }

  const sigbar = abar => sqrt((1 - abar) / abar)

  function lookBack({ abar_t, abar_s }, before) {        // the weight of the x̂₀ before, in a line through both
    const from = -log(sigbar(abar_t)), to = -log(sigbar(abar_s)), n = 2000
    const u = abar => Math.atan(sigbar(abar)), span = u(before) - u(abar_t)
    let sum = 0, all = 0
    for (let k = 0; k < n; k++) {                        // the mean over λ with weight e^2λ
      const lam = from + (k + .5) / n * (to - from), weight = exp(2 * (lam - to))
      sum += weight * (Math.atan(exp(-lam)) - u(abar_t)) / span
      all += weight
    }
    return sum / all
  }

  const steps = {                                        // (den, row, x, z, memory) -> [x_s, x̂₀, memory]
    ddim(den, row, x) {                                  // deterministic
      const [x0, eps] = den(x, row), a = sqrt(row.abar_s), b = sqrt(1 - row.abar_s)
      return [x0.map((x0, p) => a * x0 + b * eps[p]), x0]
    },
    ddpm(den, row, x, z) {                               // ancestral: the posterior's mean, and noise of its variance
      const [x0] = den(x, row), { abar_t, abar_s } = row, alpha = abar_t / abar_s
      if (abar_s === 1) return [x0, x0]
      const c0 = sqrt(abar_s) * (1 - alpha) / (1 - abar_t), ct = sqrt(alpha) * (1 - abar_s) / (1 - abar_t)
      const sig = sqrt((1 - abar_s) / (1 - abar_t) * (1 - alpha)), fresh = z()
      return [x.map((xt, p) => c0 * x0[p] + ct * xt + sig * fresh[p]), x0]
    },
    adams(den, row, x, z, memory) {                      // stochastic, of second order
      const [x0, eps] = den(x, row), { abar_t, abar_s } = row
      if (abar_s === 1) return [x0, x0]
      const c = memory ? lookBack(row, memory.abar) : 0, used = memory && Math.abs(1 - c) + Math.abs(c) <= 7
      const mean = used ? x0.map((now, p) => now + c * (memory.x0[p] - now)) : x0
      const old = used ? x.map((xt, p) => (xt - sqrt(abar_t) * mean[p]) / sqrt(1 - abar_t)) : eps
      const keep = sigbar(abar_s) / sigbar(abar_t), renew = sqrt(1 - keep ** 2), fresh = z()
      const a = sqrt(abar_s), b = sqrt(1 - abar_s)
      return [x.map((_, p) => a * mean[p] + b * (keep * old[p] + renew * fresh[p])), x0, { abar: abar_t, x0 }]
    },
    consistency(den, row, x, z) {                        // to the end, and back to level s by fresh noise
      const [x0] = den(x, row)
      if (row.abar_s === 1) return [x0, x0]
      const fresh = z(), a = sqrt(row.abar_s), b = sqrt(1 - row.abar_s)
      return [x0.map((x0, p) => a * x0 + b * fresh[p]), x0]
    },
  }

  function* sample(net, { sampler, plan, predicts, shape: [c, h, w], seed, image }) {
    const den = denoiser(net, predicts, c, h, w)
    let x = noise(seed, image, c * h * w), memory
    for (const row of plan) {
      const z = () => noise(seed, image, c * h * w, row.t)
      const [xs, x0, next] = steps[sampler](den, row, x, z, memory)
      yield { t: row.t, x, x0 }
      x = xs
      memory = next
    }
    yield { t: 0, x, x0: x }
  }

  // --- The worker: one request, one message for each state of each image --------------------------------------------
  const nets = {}
  onmessage = ({ data: { name, weights, ...ask } }) => {
    if (weights) {
      const { tensors, facts } = readWeights(weights)
      nets[name] = { net: unet(tensors), predicts: facts.predicts, shape: JSON.parse(facts.shape) }
    }
    const { net, ...known } = nets[name], abar = schedule()
    const plan = rowsOf(ask.levels || levels(ask.steps, ask.sampler === 'adams' ? 'trailing' : 'linspace', 1000), abar)
    for (let image = 0; image < ask.n; image++) {
      let k = 0
      for (const state of sample(net, { ...known, ...ask, plan, image })) postMessage({ image, k: k++, of: plan.length, ...state })
    }
    postMessage({ done: true })
  }
}

// --- The page around it: what is asked, how far it is, and a slider through time --------------------------------------

const SAMPLERS = {                                       // what can be asked for: network, words, numbers of evaluations
  consistency: ['student', 'student, consistency', [1, 2, 4]],
  adams: ['teacher', 'adams', [10, 5, 8, 20, 50]],
  ddim: ['teacher', 'ddim', [20, 10, 50, 100]],
  ddpm: ['teacher', 'ddpm, ancestral', [100, 50, 250, 1000]],
}

// `networks`: {teacher, student: {url} or {base64}}; `plans`: {steps: levels} of the student; `root`: where the page is made
function ddpmLive(root, networks, plans) {
  const option = (value, word = value) => `<option value="${value}">${word}</option>`
  const known = Object.entries(SAMPLERS).filter(([, [network]]) => networks[network])
  root.innerHTML = `<form><label>sampler <select name="sampler">${known.map(([k, [, word]]) => option(k, word)).join('')}</select></label>
    <label>evaluations <select name="steps"></select></label>
    <label>seed <input name="seed" type="number" min="0" max="9007199254740991" value="0"></label>
    <label>digits <select name="n">${[4, 1, 9, 16].map(n => option(n)).join('')}</select></label>
    <button name="go">Draw</button> <progress value="0" hidden></progress></form>
    <p class="told" role="status" aria-live="polite">The network is loaded when you press Draw, some two megabytes.</p>
    <div class="pictures"></div>
    <label class="time" hidden>time <input type="range" min="0" value="0"> <output></output></label>`
  const form = root.querySelector('form'), told = root.querySelector('.told'), bar = root.querySelector('progress')
  const { sampler, steps, seed, n, go } = form.elements, pictures = root.querySelector('.pictures')
  const time = root.querySelector('.time'), slider = time.querySelector('input'), buffers = {}
  let worker = null, frames = []                         // frames[k][image]: a state of an image

  const offer = () => { steps.innerHTML = SAMPLERS[sampler.value][2].map(n => option(n)).join('') }
  const say = text => { told.textContent = text }

  async function bytesOf(name) {                         // the weights of a network, once
    if (buffers[name]) return buffers[name]
    const { url, base64 } = networks[name]
    if (base64) return buffers[name] = Uint8Array.from(atob(base64), c => c.charCodeAt(0)).buffer
    say('loading the network …')
    const answer = await fetch(url)
    if (!answer.ok) throw new Error(`${url}: ${answer.status}`)
    return buffers[name] = await answer.arrayBuffer()
  }

  function grid(canvas, states, key) {                   // grey levels of one picture of each state, side by side
    const across = Math.ceil(Math.sqrt(+n.value)), down = Math.ceil(n.value / across)
    canvas.width = across * 34
    canvas.height = down * 34
    const pen = canvas.getContext('2d'), tile = new ImageData(32, 32)
    states.forEach((state, i) => {
      state[key].forEach((v, p) => tile.data.set([...Array(3).fill(Math.round((Math.min(Math.max(v, -1), 1) + 1) * 127.5)), 255], 4 * p))
      pen.putImageData(tile, i % across * 34 + 1, Math.floor(i / across) * 34 + 1)
    })
  }

  function show(k) {
    const states = frames.length ? Array.from({ length: +n.value }, (_, i) => frames[k]?.[i]).filter(Boolean) : []
    if (!states.length) return
    const words = { x: 'the state x at that time', x0: 'what the network takes the digit to be' }
    if (!pictures.children.length) for (const key in words) pictures.insertAdjacentHTML('beforeend', `<figure><canvas role="img" aria-label="${words[key]}"></canvas><figcaption>${words[key]}</figcaption></figure>`)
    pictures.querySelectorAll('canvas').forEach((canvas, i) => grid(canvas, states, 'x x0'.split(' ')[i]))
    time.querySelector('output').textContent = `t = ${states[0].t}`
  }

  function end(text) {
    worker?.terminate()
    worker = null
    go.textContent = 'Draw'
    bar.hidden = true
    root.dataset.state = 'idle'
    say(text)
  }

  async function draw() {
    const [network] = SAMPLERS[sampler.value], ask = { sampler: sampler.value, steps: +steps.value, seed: seed.value || '0', n: +n.value }
    go.textContent = 'Stop'
    root.dataset.state = 'busy'
    frames = []
    root.images = []
    let weights
    try { weights = await bytesOf(network) } catch (e) { return end(`The network could not be loaded (${e.message}). It is beside this page, which must come from a server.`) }
    if (root.dataset.state !== 'busy') return
    const every = Math.ceil(ask.steps / 60), began = performance.now(), all = ask.n * ask.steps
    bar.hidden = false
    time.hidden = false
    slider.max = Math.ceil(ask.steps / every)
    slider.value = slider.max
    worker = new Worker(URL.createObjectURL(new Blob([`(${ddpm})()`], { type: 'text/javascript' })))
    worker.onerror = e => end(`It stopped: ${e.message}`)
    worker.onmessage = ({ data }) => {
      const seconds = (performance.now() - began) / 1000
      if (data.done) return end(`${ask.n} ${ask.n > 1 ? 'digits' : 'digit'} of seed ${ask.seed}, ${all} evaluations in ${seconds.toFixed(1)} s, ${(seconds / all).toFixed(2)} s each. Drag the slider through time.`)
      const last = data.k === data.of, k = last ? +slider.max : data.k / every
      if (last) root.images[data.image] = data.x
      if (last || Number.isInteger(k)) (frames[k] ||= [])[data.image] = data
      bar.value = (data.image * data.of + data.k) / all
      say(`evaluation ${Math.min(data.image * data.of + data.k + 1, all)} of ${all}`)
      if (last || data.image === 0) { slider.value = k; show(last ? k : Math.floor(k)) }
    }
    worker.postMessage({ ...ask, name: network, weights, levels: network === 'student' ? plans[ask.steps] : null })
  }

  form.onsubmit = event => {
    event.preventDefault()
    if (root.dataset.state === 'busy') end('Stopped.')
    else draw()
  }
  sampler.onchange = offer
  slider.oninput = () => show(+slider.value)
  root.dataset.state = 'idle'
  offer()
}
