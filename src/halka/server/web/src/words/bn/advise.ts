import type en from "../en/advise";
import type { Same } from "../words";

export default {
  title: "পরামর্শ",
  lead: "আপনার উপাত্ত আর এই যন্ত্রের জন্য কোন পদ্ধতি মানায়, ছোট ছোট পরীক্ষায় জানুন।",
  empty: "এখনো পরামর্শ চাওয়া হয়নি",
  emptyHint: "উপাত্ত দিন, কয়েক মিনিট ধরে পদ্ধতিগুলো যাচাই করে দেখা হবে।",
} satisfies Same<typeof en>;
