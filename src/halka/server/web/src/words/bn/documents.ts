import type en from "../en/documents";
import type { Same } from "../words";

export default {
  title: "নথি",
  lead: "উত্তর যেসব সংগ্রহ থেকে আসে, আর কোন প্রশ্নে সেখানে কী মেলে।",
  empty: "এখনো কোনো সংগ্রহ নেই",
  emptyHint: "একটি সংগ্রহ তৈরি করে নথি যোগ করুন: সাধারণ লেখা, Markdown, HTML, PDF।",
} satisfies Same<typeof en>;
