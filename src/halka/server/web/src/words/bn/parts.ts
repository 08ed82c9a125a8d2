import type en from "../en/parts";
import type { Same } from "../words";

export default {
  close: "বন্ধ করুন",
  copy: "অনুলিপি করুন",
  copied: "অনুলিপি হয়েছে",
  copyFailed: "ব্রাউজার অনুলিপি করতে দেয়নি: লেখাটি নিজে বেছে নিন।",
  terminal: "টার্মিনালে একই কাজ",
  table: "সারণি",
  tryAgain: "আবার চেষ্টা করুন",
  cancel: "থাক",
  chartValues: "মানগুলো সারণিতে",
  leaveOut: "{name} বাদ দিন",
  otherFile: "অন্য ফাইল বেছে নিন",
  interval: "{low} থেকে {high}",
  before: "আগের",
  next: "পরের",
  range: "{from} থেকে {to}",
  nameMissing: "একটি নাম দিন।",
  nameWrong: "ইংরেজি অক্ষর, অঙ্ক, ডট, হাইফেন ও আন্ডারস্কোর লিখুন; শুরুতে অক্ষর বা অঙ্ক, শেষে ডট নয়; সব মিলিয়ে ১০০টির বেশি নয়।",
} satisfies Same<typeof en>;
